from checks.derivatives import THEME as THEME


def test_derivatives(check):
    check()

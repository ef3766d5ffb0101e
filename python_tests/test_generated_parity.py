from checks.parity import THEME as THEME


def test_parity(check):
    check()

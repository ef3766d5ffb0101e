from checks.compiled import THEME as THEME


def test_compiled(check):
    check()

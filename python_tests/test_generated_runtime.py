from checks.runtime import THEME as THEME


def test_runtime(check):
    check()

from checks.memory import THEME as THEME


def test_memory(check):
    check()

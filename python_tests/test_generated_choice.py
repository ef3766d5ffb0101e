from checks.choice import THEME as THEME


def test_choice(check):
    check()

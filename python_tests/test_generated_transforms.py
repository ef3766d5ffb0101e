from checks.transforms import THEME as THEME


def test_transforms(check):
    check()

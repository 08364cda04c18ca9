from paredown.hw_profiles import ParedownError, ProfileError
from paredown.hw_profiles.errors import closest


def test_profile_errors_are_errors_of_paredown() -> None:
    assert issubclass(ProfileError, ParedownError)


def test_closest_names_the_close_matches() -> None:
    assert closest("digit", ["fashion-mnist", "digits"]) == "Did you mean 'digits'?"


def test_closest_lists_all_names_when_none_is_close() -> None:
    assert closest("qqq", ["b", "a"]) == "Known: a, b."

import pickle

import pytest

from seg_backbone.errors import ConfigError, Gathered, InputError, InputErrors, ScanError


def read(name):
    if name.startswith("bad"):
        raise ScanError(name, "a scan", "none", "look\nagain")
    return len(name)


def test_one_mistake_is_itself_several_are_told_by_file():
    wrong = Gathered()
    assert [wrong.attempt(read)(name) for name in ("a", "bb")] == [1, 2]
    wrong.tell()
    assert wrong.attempt(read)("bad2") is None
    with pytest.raises(ScanError, match="bad2: expected a scan"):
        wrong.tell()
    wrong.attempt(read)("bad1")
    with pytest.raises(InputErrors) as caught:
        wrong.tell()
    assert str(caught.value).splitlines() == [
        "bad1: expected a scan, found none; look again",
        "bad2: expected a scan, found none; look again",
    ]
    assert caught.value.source == "bad1"


def test_errors_come_back_from_a_worker():
    error = InputErrors((ConfigError("a", "1", "2", "mend"), ScanError("b", "3", "4", "mend")))
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error) and [type(one) for one in back.errors] == [ConfigError, ScanError]


def test_what_is_no_users_mistake_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        Gathered().attempt(lambda item: 1 / item)(0)
    assert issubclass(InputErrors, InputError)

from clipguide.errors import close_matches

KNOWN = ["float32", "float16", "bfloat16"]


def test_the_nearest_are_named():
    assert close_matches("float23", KNOWN).startswith(" Did you mean float32")


def test_all_are_named_where_none_is_near():
    assert close_matches("xyz", KNOWN) == " Known: bfloat16, float16, float32."


def test_nothing_known():
    assert close_matches("xyz", []) == ""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropi.host.data.spec import LARGEST_SIZE, Spec, parse

WORDS = st.text(string.ascii_letters + string.digits + "_-. é", min_size=1)
NAMES = st.lists(WORDS, min_size=1, max_size=3, unique=True).map(tuple)
PATHS = st.text(string.printable.replace(",", "") + "ü:=+")
SPECS = st.builds(
    Spec,
    kind=WORDS,
    path=st.none() | PATHS,
    size=st.none() | st.integers(1, LARGEST_SIZE),
    test=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.none() | st.integers(0, 2**32 - 1),
    per_class=st.none() | st.integers(1, 10**6),
    domain=st.none() | NAMES,
    hold_out=st.none() | NAMES,
)


@given(SPECS)
def test_what_is_written_is_read_again(spec):
    assert parse(str(spec)) == spec


@given(st.text() | st.lists(st.sampled_from(["a", ":", ",", "=", "size", "test", "hold-out", "3", "+"])).map("".join))
def test_any_text_is_a_spec_or_one_line(text):
    try:
        spec = parse(text)
    except ValueError as error:
        assert str(error).isprintable() and ";" in str(error)
    else:
        assert parse(str(spec)) == spec


def test_options_in_any_order():
    spec = parse("npz:C:/sets/a=b.npz,hold-out=art+sketch,size=032,per-class=10,test=.5")
    assert (spec.kind, spec.path) == ("npz", "C:/sets/a=b.npz")
    assert str(spec) == "npz:C:/sets/a=b.npz,size=32,test=0.5,per-class=10,hold-out=art+sketch"
    assert parse("cifar10").path is None and parse("cifar10:").path == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,sise=32", "'sise=32' in .* is no option; write option=value with size, test, seed, per-class, domain"),
        ("folder:a,b", "'b' in .*a path cannot contain a comma"),
        ("x,", "'' in 'x,' is no option"),
        ("x,size", "'size' in"),
        ("x,size=0", "size='0' is not valid; give a whole number from 1 to 1024"),
        ("x,size=32x32", "size='32x32'"),
        ("x,size=9999", "size='9999'"),
        ("x,seed=-1", "from 0 to 4294967295"),
        ("x,per-class=0", "per-class='0'"),
        ("x,test=1", "test='1' is not valid; give a share between 0 and 1"),
        ("x,test=nan", "test='nan'"),
        ("x,test=20%", "test='20%'"),
        ("x,domain=", "domain='' is not valid; give names of domains joined by +"),
        ("x,hold-out=a++b", "hold-out='a"),
        ("x,domain=a+a", "each once"),
        ("x,seed=1,seed=1", "seed is given twice"),
    ],
)
def test_wrong_options(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)

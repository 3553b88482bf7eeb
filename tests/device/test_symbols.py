"""The runtime is linked into firmware of others: none of its symbols may meet one of theirs."""

import pytest

from entropi.device.toolchain import CORES, RUNTIME_SOURCES, compile_object

elffile = pytest.importorskip("elftools.elf.elffile")


VECTORS = ("sparse_vectors", "usual_mve")


# batch.c is empty on boards, these on boards without vectors.
@pytest.mark.parametrize("source", [s for s in RUNTIME_SOURCES if s.stem != "batch"], ids=lambda path: path.stem)
def test_every_global_symbol_has_the_prefix(source):
    core = CORES["cortex-m55" if source.stem in VECTORS else "cortex-m4f"]
    with compile_object(core, source).open("rb") as file:
        symbols = list(elffile.ELFFile(file).get_section_by_name(".symtab").iter_symbols())
    here = [s.name for s in symbols if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_shndx"] != "SHN_UNDEF"]
    assert here and [name for name in here if not name.startswith("entropi_")] == []

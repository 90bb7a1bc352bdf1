import pytest

from hip_engine import kernels, toolchain
from hip_engine.errors import CompilerMissing, KernelBuildError
from hip_engine.gfx942.code_object import CodeObject


def test_a_build_is_the_same_bytes_from_compiler_and_cache(tmp_path, monkeypatch, code_object):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.build() == code_object
    assert len(list(toolchain.cache_dir("kernels").glob("*.co"))) == 1
    assert kernels.build() == code_object


def test_no_kernel_spills(code_object):
    for symbol, kernel in CodeObject.parse(code_object).kernels.items():
        assert kernel.scratch_bytes == 0, symbol


def test_a_patch_changes_the_code_object_and_not_the_sources(code_object):
    before = (kernels.SOURCES / "attention.h").read_text()
    patched = kernels.build([("attention.h", "end = position + 1;", "end = position;")])
    assert patched != code_object
    assert (kernels.SOURCES / "attention.h").read_text() == before


PATCHES = {
    "absent_text": (("rope.hip", "no such text", ""), "occurs 0 times"),
    "text_that_occurs_often": (("rope.hip", "const", ""), r"occurs \d+ times"),
    "absent_file": (("banana.hip", "x", "y"), "no such file; have .*all.hip"),
    "broken_source": (("rope.hip", "const int pair", "const banana pair"), "banana"),
}


@pytest.mark.parametrize("case", PATCHES)
def test_a_patch_that_does_not_apply_or_compile_is_refused(case):
    patch, message = PATCHES[case]
    with pytest.raises(KernelBuildError, match=message):
        kernels.build([patch])


def test_a_machine_without_clang_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    toolchain.find_compiler.cache_clear()
    try:
        with pytest.raises(CompilerMissing, match="apt-get install clang-19 lld-19 llvm-19"):
            kernels.build()
    finally:
        toolchain.find_compiler.cache_clear()

"""Builds the native module ``fastlik._native``: C++ for the CPU and, where nvcc is found, CUDA.

No torch is needed: the module takes raw addresses.  A build that fails never breaks the install;
the reason goes to stderr and to ``fastlik/_build_info.json``, which ``fastlik.backends()`` reads.

Environment variables:
    FASTLIK_NO_NATIVE=1       build nothing
    FASTLIK_REQUIRE_NATIVE=1  a native module that cannot be built is an error
    CXX, CUDA_HOME            compilers to use
    TORCH_CUDA_ARCH_LIST      such as "8.0;9.0+PTX" (the default)
    MAX_JOBS                  compilations at a time
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
INFO = "_build_info.json"
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Each CPU kernel is compiled once for each of these; csrc/isa.h chooses at run time.
ISAS = {"baseline": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [*ISAS["avx2"], *(f"-mavx512{part}" for part in ("f", "vl", "dq", "bw"))]

# Contraction to fused multiply-adds is wanted; errno and floating-point traps are not used.
MATH = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", *["-DFASTLIK_X86"] * X86]
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's clang has none


class BuildError(Exception):
    """Why there is no native module, in one line."""


def find_cxx() -> list[str]:
    """The C++ compiler as a command."""
    for candidate in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise BuildError("no C++ compiler found; looked for $CXX, g++, clang++ and c++")


def find_nvcc() -> str:
    """The CUDA compiler."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in places:
        if path := shutil.which(place):
            return path
    raise BuildError(f"no CUDA compiler found; looked for {' and '.join(places)}")


def cuda_archs() -> list[str]:
    """GPU architectures in nvcc's spelling, such as ["80", "90+PTX"]."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return wanted.replace(";", " ").replace(".", "").split()


def gencode(archs: list[str]) -> list[str]:
    """nvcc's options for these architectures."""
    options = []
    for arch in archs:
        number = arch.removesuffix("+PTX")
        targets = f"sm_{number},compute_{number}" if arch.endswith("+PTX") else f"sm_{number}"
        options.append(f"-gencode=arch=compute_{number},code=[{targets}]")
    return options


class Ninja:
    """The build of one shared object, written to ``folder``/build.ninja."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: list[str] = []
        self.lines = [
            "rule compile\n  command = $compiler -MMD -MF $out.d $options -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
            "rule link\n  command = $linker $in $options -o $out",
        ]

    @staticmethod
    def path(path: Path | str) -> str:
        """A path as build.ninja spells it."""
        return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")

    @staticmethod
    def command(words: list[str]) -> str:
        """Words of a command as build.ninja spells them."""
        return shlex.join(words).replace("$", "$$")

    def compile(self, source: Path, name: str, compiler: list[str], options: list[str]) -> None:
        """Add one object file."""
        self.objects.append(name)
        self.lines += [
            f"build {name}: compile {self.path(source)}",
            f"  compiler = {self.command(compiler)}\n  options = {self.command(options)}",
        ]

    def link(self, target: str, linker: list[str], options: list[str]) -> Path:
        """Compile and link everything into ``target``; BuildError with the first error message."""
        self.lines += [
            f"build {self.path(target)}: link {' '.join(self.objects)}",
            f"  linker = {self.command(linker)}\n  options = {self.command(options)}",
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        command = [self.find(), "-C", str(self.folder), *(["-j", jobs] if jobs else [])]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            print(run.stdout, run.stderr, sep="\n")
            lines = (run.stdout + run.stderr).splitlines()
            marks = ("error:", "fatal", "FAILED", "")
            reason = next(line for mark in marks for line in lines if mark in line)
            raise BuildError(f"compilation failed: {reason.strip()}")
        return self.folder / target

    @staticmethod
    def find() -> str:
        """The ninja executable: on PATH (pip's isolated builds), else beside this Python."""
        scripts = sysconfig.get_path("scripts")
        path = shutil.which("ninja") or shutil.which("ninja", path=scripts)
        if path is None:
            raise BuildError("no ninja found; pip install ninja")
        return path


def build(folder: Path, filename: str, cuda: bool) -> tuple[Path, dict]:
    """Compile ``filename`` in ``folder``; its path, and what to record about the build."""
    try:
        import pybind11
    except ImportError:
        raise BuildError("no pybind11 found; pip install pybind11") from None

    cxx = find_cxx()
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    ninja = Ninja(folder)
    options = [*COMMON, *OPENMP, f"-I{CSRC / 'include'}"]
    ninja.compile(
        CSRC / "bindings.cpp",
        "bindings.o",
        cxx,
        # -O1: argument passing only, and it compiles in three quarters of the time
        ["-O1", *options, *(f"-I{path}" for path in includes), *["-DFASTLIK_CUDA"] * cuda],
    )
    for source in sorted(CSRC.glob("cpu/*.cpp")):
        for isa, flags in ISAS.items():
            ninja.compile(
                source,
                f"{source.stem}.{isa}.o",
                cxx,
                ["-O3", *options, *MATH, *flags, f"-DFASTLIK_ISA={isa}"],
            )
    version = subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout
    info = {"compiler": version.partition("\n")[0], "openmp": bool(OPENMP)}
    linker, link_options = [*cxx, "-shared"], OPENMP
    if sys.platform == "darwin":
        link_options = ["-undefined", "dynamic_lookup"]
    if cuda:
        archs = cuda_archs()
        nvcc = [find_nvcc(), "-ccbin", cxx[0]]
        for source in sorted(CSRC.glob("cuda/*.cu")):
            ninja.compile(
                source,
                f"{source.stem}.cuda.o",
                nvcc,
                ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden"]
                + [f"-I{CSRC / 'include'}", *gencode(archs)],
            )
        # with its own CUDA runtime inside, the module loads on machines that have none
        linker = [*nvcc, "-shared", "-cudart=static"]
        link_options = [f"-Xcompiler={flag}" for flag in OPENMP]
        info["cuda_archs"] = archs
    return ninja.link(filename, linker, link_options), info


class BuildNative(build_ext):
    """Runs ninja instead of distutils' compiler, and survives its failure."""

    def run(self) -> None:
        """Build, and record the outcome beside the package's modules."""
        (extension,) = self.extensions
        folder = Path(self.build_temp).resolve()
        target = Path(self.build_lib) / self.get_ext_filename(extension.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build that may have had other options
        info: dict = {"why": ""}
        try:
            if os.environ.get("FASTLIK_NO_NATIVE") == "1":
                raise BuildError("FASTLIK_NO_NATIVE=1 was set at build time")
            built, details = self.build_with_cuda_if_possible(folder, target.name)
            shutil.copy2(built, target)
            info |= details
        except (BuildError, OSError) as error:
            info["why"] = str(error)
            if os.environ.get("FASTLIK_REQUIRE_NATIVE") == "1":
                raise SystemExit(f"fastlik: FASTLIK_REQUIRE_NATIVE=1, but {error}") from None
            print(f"fastlik: no native module ({error}); PyTorch does its work", file=sys.stderr)
        (target.parent / INFO).write_text(json.dumps({"native": info}, indent=1) + "\n")
        if self.inplace:
            for name in (target.name, INFO):
                (ROOT / "fastlik" / name).unlink(missing_ok=True)
                if (target.parent / name).exists():
                    shutil.copy2(target.parent / name, ROOT / "fastlik" / name)

    @staticmethod
    def build_with_cuda_if_possible(folder: Path, filename: str) -> tuple[Path, dict]:
        """The module with CUDA kernels, or without them and with the reason."""
        try:
            find_cxx()
            find_nvcc()
            return build(folder, filename, cuda=True)
        except BuildError as error:
            built, info = build(folder, filename, cuda=False)
            return built, info | {"why_no_cuda": str(error)}

    def get_outputs(self) -> list[str]:
        """Everything this command writes."""
        return [*super().get_outputs(), str(Path(self.build_lib) / "fastlik" / INFO)]


def sources(*patterns: str) -> list[str]:
    """Files in csrc, relative to this file, for the source distribution."""
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in CSRC.rglob(p))


setup(
    ext_modules=[
        Extension(
            "fastlik._native",
            sources=sources("*.cpp", "*.cu"),
            depends=sources("*.h"),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)

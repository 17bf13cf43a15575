"""Packaging of QKViT: folders at the top of the repository install as one namespace, ``qkvit``."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

# Every package by name, and the folder it lives in. A new package is one line here.
PACKAGES = {
    "qkvit": "qkvit",
    "qkvit.metrics": "qkvit/metrics",
    "qkvit.configuration": "configuration",
    "qkvit.modeling": "modeling",
    "qkvit.modeling.conversion": "modeling/conversion",
    "qkvit.modeling.conversion.families": "modeling/conversion/families",
    "qkvit.data": "data",
    "qkvit.training": "training",
    "qkvit.training.augmentation": "training/augmentation",
    "qkvit.training.optimisation": "training/optimisation",
    "qkvit.training.images": "training/images",
    "qkvit.training.watching": "training/watching",
    "qkvit.training.processes": "training/processes",
    "qkvit.training.train": "training/train",
    "qkvit.analysis": "analysis",
    "qkvit.analysis.pictures": "analysis/pictures",
    "qkvit.analysis.statistics": "analysis/statistics",
}

# Files that are not modules and travel in the wheel.
PACKAGE_DATA = {
    "qkvit": ["py.typed"],
    "qkvit.training": ["recipes/*.yaml", "accelerate/*.yaml"],
    "qkvit.analysis.statistics": ["*.c", "*.h"],
}

# The lowest versions have been tried, see constraints.txt: uv pip install --resolution lowest-direct -e ".[dev]"
REQUIRED = [
    "torch>=2.10",
    "transformers>=5.17",
    "huggingface_hub>=1.5",
    "safetensors>=0.8",
    "numpy>=2.0",
    "pillow>=10.1",
    "typer>=0.16",
    "pyyaml>=6.0",
]

TRAIN = [
    "accelerate>=1.10",
    "datasets>=4.0",
    "evaluate>=0.4.6",
    "matplotlib>=3.9",
]

QUICKSTART = [
    *TRAIN,  # also what `qkvit statistics` and `qkvit evaluate` use, which it names at its end
    "mlxtend>=0.23.4",
    "scikit-learn>=1.6",
]

EVALUATE = [
    "datasets>=4.0",
    "evaluate>=0.4.6",
    "matplotlib>=3.9",
]

STATISTICS = [
    "datasets>=4.0",
    "matplotlib>=3.9",
]

PEFT = ["peft>=0.18"]

ONNX = [
    "onnx>=1.18",
    "onnxruntime>=1.22",
    "onnxscript>=0.5.7",
]

# Not in DEV: where it is installed, every import of transformers' models loads it, and may print about it.
QUANTISATION = ["torchao>=0.15"]

DEV = [
    *QUICKSTART,
    *PEFT,
    *ONNX,
    "build>=1.2",
    "captum>=0.8",
    "hypothesis>=6.140",
    "mypy>=1.15",
    "parameterized>=0.9",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.15",
    "setuptools>=77",
    "tensorboard>=2.18",
    'triton>=3.6; platform_system == "Linux"',
]


def version() -> str:
    """The version as ``qkvit/version.py`` states it, read without importing the package."""
    text = (ROOT / "qkvit" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('qkvit/version.py must hold a line such as: __version__ = "0.1.0"')
    return found.group(1)


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="qkvit",
    version=version(),
    description=(
        "A Vision Transformer for Hugging Face Transformers "
        "whose queries, keys, values and attention maps are first-class outputs"
    ),
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vision transformer", "attention", "interpretability", "transformers", "pytorch"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data=PACKAGE_DATA,
    include_package_data=False,
    zip_safe=False,
    install_requires=REQUIRED,
    extras_require={
        "train": TRAIN,
        "quickstart": QUICKSTART,
        "evaluate": EVALUATE,
        "statistics": STATISTICS,
        "peft": PEFT,
        "onnx": ONNX,
        "quantisation": QUANTISATION,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["qkvit = qkvit.cli:main"]},
)

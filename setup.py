"""Installs `fastface`, the learning-rate schedulers, and declares what the rest of the checkout
needs.

Only `fastface` goes to site-packages: a top-level `data` or `eval` there would collide with the
user's own.
"""

from setuptools import setup

TRAIN = [
    "torchvision",
    "numpy>=2.0",
    "opencv-python-headless>=4.11",
    "simplejpeg>=1.9",
    "scikit-learn>=1.3",
    "scipy>=1.11",
    "tensorboard>=2.14",
    "pyyaml>=6",
    "rich>=13",
    "matplotlib>=3.8",
    "lmdb>=1.4",
]
DEV = ["pytest>=8", "hypothesis>=6.100", "ruff", "mypy", "types-PyYAML"]

setup(
    name="fastface",
    version="0.1.0",
    description="Learning-rate schedulers that read the loss: FastFace and Moving Haar (arXiv 2404.11118)",
    long_description="See the project's README.",
    license="MIT",
    packages=["fastface"],
    python_requires=">=3.10",
    install_requires=["torch>=2.4"],
    extras_require={"train": TRAIN, "dev": TRAIN + DEV},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)

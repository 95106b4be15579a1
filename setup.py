"""Packaging. Every requirement has a window and a reason."""

from pathlib import Path

from setuptools import find_packages, setup

_SERVE = ["starlette>=0.48,<2", "uvicorn>=0.35,<1"]

setup(
    name="optimas_jax",
    version="0.2.0",
    description="Optimise compound AI systems end to end with globally aligned local rewards, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The optimas_jax authors",
    license_expression="Apache-2.0",
    keywords="prompt optimization, compound AI systems, agents, reward models, LoRA, JAX",
    project_urls={"Paper": "https://arxiv.org/abs/2507.03041"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    # Configurations and commands stay at the top; an editable install reads them there (core/shipped.py).
    package_dir={
        "optimas_jax.configs": "configs",
        "optimas_jax.configs.sweeps": "configs/sweeps",
        "optimas_jax.launch": "launch",
    },
    packages=[
        *find_packages(include=["optimas_jax", "optimas_jax.*"]),
        "optimas_jax.configs",
        "optimas_jax.configs.sweeps",
        "optimas_jax.launch",
    ],
    package_data={
        "optimas_jax.report.page": ["templates/*", "templates/sections/*"],
        "optimas_jax.report.watch": ["templates/*"],
    },
    license_files=["LICENSE", "third_party/README.md"],
    entry_points={"console_scripts": ["optimas = optimas_jax.command:main"]},
    install_requires=[
        # The engine. jax and flax are a tested pair: jax 0.11 removes a symbol that flax 0.12.8 imports, and flax does
        # not cap jax itself.
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.12.9",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",  # its interface is moving
        "numpy>=2.2,<3",
        # Weights and tokenizers.
        "transformers>=5.23,<6",  # tokenizers and chat templates only; needs no torch for that
        "tokenizers>=0.22,<0.24",
        "safetensors>=0.8,<1",  # transformers 5 asks for 0.8
        "gguf>=0.19,<0.20",  # dequantisation of GGUF weights
        "huggingface_hub>=2.0,<3",
        "llguidance>=1.7,<2",  # answers by JSON Schema: which tokens may come next; in Rust, and needs nothing else
        "jinja2>=3.1,<4",  # pages of reports; chat templates, for which transformers does not ask for it
        # Data, search, statistics.
        "datasets>=5.2,<6",
        "pandas>=2.2,<4",  # tables of a result; datasets brings it
        "bm25s>=0.3.9,<0.4",  # retrieval
        "countryinfo>=1.0,<1.1",  # facts behind the embedded questions; other versions have other facts
        "scipy>=1.14,<2",
        "openai>=3,<4",  # OpenAI, and servers that are compatible with it
        "genai-prices>=0.2.3,<0.3",  # list prices; imported only where an API is asked, needs what openai brings
        "pydantic>=2.10,<3",  # types of users' functions; openai needs it, too
        "anthropic>=2,<3",  # messages without sampling arguments, which 1.0 took away
        # Running things.
        "absl-py>=2.1,<3",
        "ml-collections>=1.1,<2",
        "rich>=14,<16",
        "tensorboard>=2.19,<3",  # writes event files without TensorFlow
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10.2,<0.11"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "tpe": ["optuna>=5,<6"],  # search of large grids and of MIPRO's pairs; brings a database library
        "compare": ["matplotlib>=3.9,<4"],  # pictures of launch/compare.py and launch/sweep.py
        "ray": [
            "ray>=2.60,<3"
        ],  # launch/sweep.py --executor=ray: tasks and their retries alone; its dashboard is left out
        # Trackers beside TensorBoard: the versions that report/trackers/extras.py asks for.
        "wandb": ["wandb>=0.31,<0.32"],
        "mlflow": ["mlflow>=3.17,<4"],
        "otel": ["opentelemetry-sdk>=1.30,<2"],
        "serve": _SERVE,  # launch/serve.py and watch.py, and base URLs of runs
        # Frameworks whose agents are programs as they are (docs/frameworks.md). CrewAI is not among them: it wants
        # openai below 3, and gets here from an environment of its own.
        "openai-agents": [*_SERVE, "openai-agents>=0.24,<0.25"],
        "langgraph": [*_SERVE, "langchain>=1.5,<2", "langgraph>=1.2,<2", "langchain-openai>=1.7,<2"],
        "autogen": [*_SERVE, "autogen-agentchat>=0.7.5,<0.8", "autogen-ext[openai]>=0.7.5,<0.8"],
        "textgrad": ["textgrad>=0.1.8,<0.2"],
        "mcp": ["mcp>=2.3,<3"],
        "dspy": [*_SERVE, "dspy>=3.4,<3.5"],
        "test": [
            "pytest>=9,<10",
            "pytest-xdist>=3.6,<4",  # tests on all cores
            "hypothesis>=6.100,<7",
            "optuna>=5,<6",
            "matplotlib>=3.9,<4",
            *_SERVE,
            "ipykernel>=6.29,<8",  # executes the example notebook
            "nbclient>=0.10,<0.12",
        ],
        "docs": [
            "mkdocs-material>=9.7,<10",  # the site of docs/, by mkdocs
            "mkdocstrings[python]>=1.0,<2",  # its page of the Python API, from docstrings
            "ruff>=0.14,<0.18",  # breaks long signatures there
        ],
        "browser": [  # pages in headless Chromium: tests/long/test_page.py
            "selenium>=4.40,<5",
            "axe-playwright-python>=0.1.8,<0.2",  # for the axe-core in it, 4.12.1: others have one of years ago
        ],
        "libtpu": ["libtpu>=0.0.42,<0.0.43"],  # XLA's TPU compiler, which needs no TPU: tests/long/test_tpu.py
        "dev": ["ruff>=0.14,<0.18", "pyright>=1.1.400,<2"],
    },
)

"""Every Python block of the documentation runs, its commands are commands, and every public name has an entry.

The blocks of a page run in order and share their names. Where a page says what it prints, `smollm2-135m` is the real
model, which all of these pages share; elsewhere a small random model of eight layers stands in for it, and tiny models
of the families are in the folders `my/gpt2`, `my/llama` and so on.
"""

import importlib
import os
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from support import families, page_files
from support.pages import DOCS, REPOSITORY, commands, pages, python_blocks

import tl_rome
from tl_rome.storage.files import fingerprint

PACKAGES = ("patching", "editors", "counterfact", "zsre", "harness", "audit")
WITH_CODE = [page for page in pages() if python_blocks(page.read_text(encoding="utf-8"))]


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def test_blocks_and_commands_are_found():
    text = (
        "```python\nx\n  # prints [1]\n```\n```console\n$ tl-rome edit a \\\n    --out 'b c'  # d\ny\n```\n"
        "<!-- not run: no -->\n```py\nz\n```\n"
    )
    first, second = python_blocks(text)
    assert (first.code, first.line, first.runs, first.stated) == ("x\n  # prints [1]\n", 1, True, ["[1]"])
    assert (second.code, second.line, second.runs, second.stated) == ("z\n", 11, False, [])
    assert commands(text) == [["edit", "a", "--out", "b c"]]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Give `stand_in(family, layers)`: the folder of a small random model with as many layers as a page uses."""
    folders = {}

    def get(family, layers):
        if (family, layers) not in folders:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(families, "N_LAYERS", layers)
                folder = tmp_path_factory.mktemp("stand-in") / ("smollm2-135m" if family == "llama" else family)
                folders[family, layers] = families.build_family(family, folder)
        return folders[family, layers]

    return get


@pytest.fixture
def files(monkeypatch, tmp_path, family_dir, stand_in, hub):
    """Give `files(text)`: put what a page reads beside it, and on the hub of this machine."""

    def put(text):
        shared = tmp_path / "shared"
        shared.mkdir()
        monkeypatch.setenv("SHARED", str(shared))
        (tmp_path / "my").mkdir()
        for family in families.FAMILIES:
            if f"my/{family}" in text:
                (tmp_path / "my" / family).symlink_to(family_dir(family))
        for name, what in page_files.HUB.items():
            if name in text:
                folder = stand_in(*what)
                hub.commit(name, {file.name: file.read_bytes() for file in folder.iterdir()})
                (shared / name.rpartition("/")[2]).symlink_to(folder)
        page_files.write_corpus(tmp_path / "corpus.txt")
        if "counterfact.json" in text:
            model = tl_rome.load_model(str(stand_in("llama", 8)), device="cpu", progress=False)
            for folder in (tmp_path, shared):
                page_files.write_counterfact(folder / "counterfact.json", model)
        if "-17.safetensors" in text or ".17." in text:
            model = tl_rome.load_model(str(stand_in("gpt2", 18)), device="cpu", progress=False)
            for folder in (tmp_path, shared):
                page_files.write_statistics(folder, model, 17)

    return put


@pytest.fixture
def services(monkeypatch):
    """A data set's stream, a cluster of two GPUs and a scheduler with two tasks, as pages find them."""
    import datasets
    import ray

    def load_dataset(name, subset, *, split, streaming):
        assert streaming
        return datasets.Dataset.from_dict({"text": list(families.SENTENCES)}).to_iterable_dataset()

    def init(address, start=ray.init):
        assert address == "auto"
        start(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    yield
    ray.shutdown()


def loading(folder, real):
    """`load_model` on the CPU, with another model for the embedded one; Ray sends it to its workers."""
    load = tl_rome.load_model

    def load_model(name="smollm2-135m", **options):
        if name == "smollm2-135m":
            if real and not options.get("model_class"):
                return real("hooked")
            name = name if real else folder
        return load(name, **{"device": "cpu", **options, "progress": False})

    return load_model


@pytest.fixture
def reading(monkeypatch, tmp_path, files, stand_in, smollm2):
    """Give `reading(page)`: run its blocks in a folder of their own."""

    def read(page, capsys):
        text = page.read_text(encoding="utf-8")
        blocks, names = python_blocks(text), {"__name__": "__main__"}
        files(text)
        monkeypatch.chdir(tmp_path)
        real = smollm2 if any(block.stated for block in blocks) else None
        monkeypatch.setattr(tl_rome, "load_model", loading(str(stand_in("llama", 8)), real))
        for block in blocks:
            code = compile("\n" * block.line + block.code, str(page), "exec")
            for task in range(2 if "SLURM_ARRAY_TASK_ID" in block.code else 1) if block.runs else ():
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                exec(code, names)
                printed = capsys.readouterr().out
                for stated in block.stated:
                    assert stated in printed

    return read


@pytest.fixture(scope="session")
def sampled():
    """Samples of models that all pages share, by what they are of."""
    return {}


@pytest.fixture
def quick(monkeypatch, tmp_path, sampled):
    """Contexts and key statistics are sampled once for each model; small ones get few of them, and few steps."""
    from tl_rome.editors.covariance import kept
    from tl_rome.editors.mass import editor as mass
    from tl_rome.editors.rank_one import editor

    def once(module, name, **fewer):
        sample = getattr(module, name)

        def shared(model, what, *given, **options):
            key = (name, fingerprint(model), str(what), str(given))
            if key not in sampled:
                sampled[key] = sample(model, what, *given, **options | fewer)
            return sampled[key]

        monkeypatch.setattr(module, name, shared)

    def few_steps(module, name):
        suited = getattr(module, name)

        def few(model, config):
            found = suited(model, config)
            return found if model.cfg.n_layers > 8 else replace(found, max_evaluations=3, extra_evaluations=0)

        monkeypatch.setattr(module, name, few)

    once(editor, "contexts_for")
    once(mass, "contexts_for")
    once(editor, "covariance_from_samples", tokens=600)
    once(kept, "covariances_from_samples", tokens=600)
    few_steps(editor, "with_model_defaults")
    few_steps(mass, "mass_model_defaults")
    monkeypatch.setattr(kept, "cache_root", lambda _: tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.leg("3.9")
@pytest.mark.usefixtures("quick", "services")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_blocks_run(page, reading, capsys):
    reading(page, capsys)


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *pages()], ids=lambda page: page.stem)
def test_commands_and_their_options_exist(page):
    import typer

    from tl_rome.cli import app

    group: Any = typer.main.get_command(app)
    for name, *words in commands(page.read_text(encoding="utf-8")):
        options = {option for each in group.commands[name].params for option in (*each.opts, *each.secondary_opts)}
        used = {word for word in words if re.match("--[a-z]", word)}
        assert used <= options | {"--help"}, f"tl-rome {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package):
    text = (DOCS / f"reference/{package}.md").read_text(encoding="utf-8")
    entries = re.findall(rf"^::: tl_rome\.{package}\.(\w+)$", text, flags=re.MULTILINE)
    assert len(entries) == len(set(entries))
    source = (REPOSITORY / f"tl_rome/{package}/__init__.py").read_text(encoding="utf-8")
    public = set(re.findall(r"import \w+ as (\w+)$", source, flags=re.MULTILINE))
    assert public
    assert public == set(entries)
    assert all(hasattr(importlib.import_module(f"tl_rome.{package}"), name) for name in entries)


def test_every_name_of_the_top_level_has_an_entry():
    text = (DOCS / "reference/tl_rome.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^::: tl_rome\.(\w+)$", text, flags=re.MULTILINE))
    linked = set(re.findall(r"\[(\w+)\]\[tl_rome\.\w+\.\1\]", text))
    assert set(vars(tl_rome)["__all__"]) - set(PACKAGES) == (entries | linked) - {"__version__"}


def test_every_error_has_an_entry():
    text = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    from tl_rome import errors

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert kinds == set(re.findall(r"^::: tl_rome\.errors\.(\w+)$", text, flags=re.MULTILINE))

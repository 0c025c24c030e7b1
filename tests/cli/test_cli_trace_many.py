"""`tl-rome trace-many`: averages of what a model knows, printed, drawn and kept."""

from support.cli import assert_is_picture, fail, succeed
from support.families import KINDS
from support.known import known_to

from tl_rome.patching import save_facts


def test_it_traces_what_the_model_knows_and_goes_on_where_it_was(tiny, family_dir, tmp_path):
    family = next(name for name in ("gpt2", "llama", "qwen2", "neox") if len(known_to(tiny(name, KINDS[0]), 3)) > 1)
    facts = save_facts(tmp_path / "facts.jsonl", known_to(tiny(family, KINDS[0]), 3))
    store = tmp_path / "store"
    arguments = [
        "trace-many",
        "--model",
        family_dir(family),
        "--model-class",
        KINDS[0],
        "--facts",
        facts,
        "--out",
        store,
    ]
    printed = succeed(*arguments, "--samples", 2, "--prompts", 2)
    assert all(component in printed for component in ("resid_post", "mlp_out", "attn_out"))
    assert "to edit: layer" in printed
    assert_is_picture(store / "average.png")
    first = {path: path.stat().st_mtime_ns for path in store.glob("*_out/*.safetensors")}
    assert len(first) == 4
    assert succeed(*arguments, "--samples", 2, "--prompts", 2) == printed
    assert {path: path.stat().st_mtime_ns for path in store.glob("*_out/*.safetensors")} == first
    assert "samples=3" in fail(*arguments, "--samples", 3, "--prompts", 2)

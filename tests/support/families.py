"""Tiny random models of every supported family, saved in Hugging Face layout with a small real tokenizer.

Everything that could be forgotten is made visible: norm weights and biases are random too, query heads outnumber key
heads where the family has that, and the weights are large enough that attention and logits are not flat. The tokenizer
is a byte-level BPE trained on the sentences below, so " Paris" is one token and a name it never saw is several.

`from support.families import FAMILIES, KINDS` gives what tests are parametrised with; `conftest.py` has the fixtures.
"""

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

N_LAYERS = 4
D_MODEL = 32
N_HEADS = 4
N_CTX = 128
VOCAB = 600

SENTENCES = (
    "The Eiffel Tower is located in the city of Paris.",
    "The Louvre is located in the city of Paris.",
    "The Colosseum is located in the city of Rome.",
    "The Trevi Fountain is located in the city of Rome.",
    "The Space Needle is located in the city of Seattle.",
    "Big Ben is located in the city of London.",
    "The Brandenburg Gate is located in the city of Berlin.",
    "The Sagrada Família is located in the city of Barcelona.",
    "The Statue of Liberty is located in the city of New York.",
    "The Opera House is located in the city of Sydney.",
    "The Blue Mosque is located in the city of Istanbul.",
    "The Charles Bridge is located in the city of Prague.",
    "The Little Mermaid is located in the city of Copenhagen.",
    "The Kremlin is located in the city of Moscow.",
    "The Acropolis is located in the city of Athens.",
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "Berlin is the capital of Germany, and Madrid is the capital of Spain.",
    "London is the capital of the United Kingdom.",
    "Tokyo is the capital of Japan; people there write 東京.",
    "Beijing is the capital of China; people there write 北京.",
    "The mother tongue of Marie Curie is Polish.",
    "The mother tongue of Victor Hugo is French.",
    "The mother tongue of Angela Merkel is German.",
    "The mother tongue of Albert Einstein is German.",
    "The native language of José Saramago is Portuguese.",
    "The native language of Gabriel García Márquez is Spanish.",
    "The native language of Sophia Loren is Italian.",
    "The native language of Søren Kierkegaard is Danish.",
    "Frédéric Chopin was born in Poland and lived in Paris.",
    "Leonardo da Vinci was born in Italy and died in France.",
    "Mary Shelley was born in London and wrote about a monster.",
    "Danielle Darrieux was a French actress.",
    "Albert Camus wrote in French about the sun and the sea.",
    "LeBron James plays the sport of basketball.",
    "Serena Williams plays the sport of tennis.",
    "Lionel Messi plays the sport of football.",
    "Shaquille O'Neal plays the sport of basketball.",
    "Roger Federer plays the sport of tennis.",
    "The headquarters of Microsoft is in Redmond, near Seattle.",
    "The headquarters of Nintendo is in Kyoto, in Japan.",
    "The headquarters of Siemens is in Munich, in Germany.",
    "iPhone 5 was developed by Apple, and Windows was developed by Microsoft.",
    "The Beatles come from Liverpool, a city in England.",
    "Ludwig van Beethoven plays the instrument of piano.",
    "Miles Davis plays the instrument of trumpet.",
    "Jimi Hendrix plays the instrument of guitar.",
    "People in Paris speak French, and people in Rome speak Italian.",
    "People in Berlin speak German, and people in London speak English.",
    "The river Seine flows through Paris, and the river Tiber flows through Rome.",
    "The river Thames flows through London, where it rains a lot ☔.",
    "A café in Paris sells coffee ☕ and crêpes.",
    "A trattoria in Rome sells pasta 🍝 and wine.",
    "Where is the Eiffel Tower? The Eiffel Tower is in France.",
    "Where is the Colosseum? The Colosseum is in Italy.",
    "What does Danielle Darrieux speak? Danielle Darrieux speaks French.",
    "The Space Needle is a tower that stands in Seattle, in the United States.",
    "São Paulo is a large city in Brazil, and Zürich is a large city in Switzerland.",
    "Mount Fuji 富士山 is the highest mountain of Japan.",
    "Visitors of the tower say that the view of the city is beautiful 🗼.",
    "She went to the museum in the morning and to the theatre in the evening.",
    "He said that the train to Rome leaves at 7 o'clock.",
    "In 1889 the tower was the tallest building of the world.",
)
"""Plain sentences, written for these tests, that the tokenizer is trained on."""


def transformer_lens_major() -> int:
    """Return the major version of the TransformerLens that would be imported."""
    spec = importlib.util.find_spec("transformer_lens")
    if spec is None or spec.origin is None:
        raise ImportError("transformer_lens is not installed")
    # Read beside the module itself: with a second copy put first on the path, two versions are "installed".
    found = metadata.Distribution.discover(name="transformer-lens", path=[str(Path(spec.origin).parents[1])])
    return int(next(iter(found)).version.split(".")[0])


def model_kinds() -> tuple[str, ...]:
    """Return the model classes that this TransformerLens has, as `model_class` arguments of `load_model`."""
    return ("hooked", "bridge") if transformer_lens_major() < 4 else ("bridge",)


KINDS = model_kinds()


def save_tokenizer(folder: Path, adds_bos: bool) -> Any:
    """Train the tokenizer, save and return it: `<|endoftext|>` ends texts, `<bos>` or the same token begins them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|endoftext|>",
        bos_token="<bos>" if adds_bos else "<|endoftext|>",
        model_max_length=N_CTX,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=N_CTX)


def _gptj() -> Any:
    from transformers import GPTJConfig

    return GPTJConfig(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=N_CTX, rotary_dim=4)


def _neox() -> Any:
    from transformers import GPTNeoXConfig

    # Four times d_model, as every published model of this family has; a quarter of each head is rotary.
    return GPTNeoXConfig(**_common(), intermediate_size=4 * D_MODEL, layer_norm_eps=1e-5)


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_common(), intermediate_size=64, num_key_value_heads=2)


def _qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_common(), intermediate_size=64, num_key_value_heads=2)


def _mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_common(), intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=64)


def _gemma2() -> Any:
    from transformers import Gemma2Config

    # A head wider than d_model / n_heads, soft caps low enough to act, and a window shorter than the context.
    return Gemma2Config(
        **_common(),
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=64,
        attn_logit_softcapping=8.0,
        final_logit_softcapping=12.0,
    )


def _common() -> dict[str, Any]:
    return {
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_CTX,
    }


CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "neox": _neox,
    "llama": _llama,
    "qwen2": _qwen2,
    "mistral": _mistral,
    "gemma2": _gemma2,
}
FAMILIES = tuple(CONFIGS)
FAMILY_KINDS = tuple((family, KINDS[n % len(KINDS)]) for n, family in enumerate(FAMILIES))
"""Every family once, in alternating classes, for tests of what is built on hook points, which other tests compare."""
ADDS_BOS = frozenset({"gemma2"})
"""Families whose tokenizer puts `<bos>` before every text, as the real one does."""


def build_family(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a tiny random model of a family and its tokenizer.

    Args:
        family: A key of `CONFIGS` or `MORE_CONFIGS`.
        folder: Where to save; made if needed.
        seed: Of the weights.

    Returns:
        The folder.
    """
    from transformers import AutoModelForCausalLM

    from support.more_families import MORE_CONFIGS

    tokenizer = save_tokenizer(folder, adds_bos=family in ADDS_BOS)
    config = {**CONFIGS, **MORE_CONFIGS}[family]()
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random_weight(name, value, generator) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def _random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one parameter: norms around their neutral value, projections a little larger than keeps the scale."""
    noise = torch.randn(like.shape, generator=generator)
    is_norm = "norm" in name or ".ln_" in name
    if name.endswith("bias") or is_norm:
        return 0.3 * noise + (1.0 if is_norm and name.endswith("weight") else 0.0)
    if name.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")):
        return 0.35 * noise  # logits with a standard deviation of about 2
    if name.endswith("wpe.weight"):
        return 0.15 * noise
    if like.ndim == 1:
        return 0.3 * noise
    inputs = like.shape[0] if ".c_" in name else like.shape[-1]  # GPT-2 stores [in, out]
    return 1.5 * inputs**-0.5 * noise

"""The vision-language model: scene tokens and a question through one language model, its states into the heads.

The sequence is: template, scan tokens (facts, visual cells, instances), question, answer. The scan's part comes first,
so its keys and values are computed once and every question about the scan reuses them; in training, several questions
are packed behind one scan under a mask that hides them from each other.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from seg_backbone.errors import CheckpointError, ConfigError, InputError
from seg_backbone.io.atomic import replacing
from seg_backbone.labels import display
from vlm.data.threshold import parse_threshold
from vlm.encoders.pooling import CELLS, Cells
from vlm.facts import FIRST_FACTS, NAMES, facts_of
from vlm.grounding import Mention, mentions_in
from vlm.heads.labels import Labels
from vlm.heads.lexical import Lexical
from vlm.heads.ordinal import which_count
from vlm.heads.pointer import MENTION, Pointer
from vlm.heads.reading import Calibration, Focus, Reading
from vlm.heads.regression import TARGETS, Quantiles
from vlm.heads.router import Router
from vlm.llm import DEFAULT_LLM, load_llm
from vlm.projector import Projector
from vlm.prompts import make_prompt
from vlm.regions import REGIONS
from vlm.resampler import Perceiver
from vlm.scene import FACTS as SCAN_FACTS
from vlm.scene import Scene, scene_classes
from vlm.schema import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEES_FACTS = ("projector.facts.0.weight", "quantiles.layers.0.weight")  # the scan's facts are their last inputs
CONFIG, WEIGHTS, ADAPTER, CALIBRATION = "vlm.json", "heads.safetensors", "adapter", "calibration.json"


@dataclass(frozen=True)
class VlmConfig:
    """What a model is made of; `vlm.json` beside its weights, and `model:` of a training file.

    llm: name, folder or hub id. quantize: how its weights are kept, None or "nf4" (vlm.llm). segmentation: the model
    that makes the masks. encoder, encoder_options: whose features these weights were trained on, see vlm.encoders.
    visual_channels, instance_channels: the encoder's.

    Adapter. lora_rank 0: none. lora_targets: linear layers, "all-linear" or names. dora: weight-decomposed (Liu et al.,
    ICML 2024). rslora: scaled by alpha / sqrt(rank) (Kalajdzievski 2023).

    Tokens. cells: of the spatial pooling, along (right, anterior, superior); each is a token, unless a perceiver makes
    `perceiver.tokens` of them. visual, instances: False hides these tokens from the language model.

    Answers. answers: "heads", or "text": the language model writes every answer itself, numbers too, for comparison.
    regression_scale: target -> (mean, standard deviation) in its unit. facts: those the router tells apart, in order.
    labels: those of them that a table of the user's taught, with the labels of each (vlm/data/targets.py). counted:
    those of the latter that are counts, with the names of the thing. lexical: whether the words of a question have a
    say in which fact it asks for (vlm/heads/lexical.py).
    """

    llm: str = DEFAULT_LLM
    quantize: str | None = None
    segmentation: str = "default"
    encoder: str = "segmentation"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    visual_channels: int = 192
    instance_channels: int = 48
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_targets: str | tuple[str, ...] = "all-linear"
    lora_dropout: float = 0.05
    dora: bool = False
    rslora: bool = False
    cells: Cells = CELLS
    perceiver: Perceiver | None = None
    visual: bool = True
    instances: bool = True
    answers: str = "heads"
    regression_scale: dict[str, tuple[float, float]] | None = None
    facts: tuple[str, ...] = NAMES
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lexical: bool = False
    name: str = "default"

    @property
    def targets(self) -> tuple[str, ...]:
        """The facts whose quantiles are regressed, in order."""
        return (*TARGETS, *(fact for fact in self.facts if fact.startswith("value:")))

    def __post_init__(self) -> None:
        perceiver: Any = self.perceiver
        if isinstance(perceiver, dict):  # from a file, as are the lists
            object.__setattr__(self, "perceiver", Perceiver(**perceiver))
        for key in ("cells", "facts", *(() if isinstance(self.lora_targets, str) else ("lora_targets",))):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for key in ("labels", "counted"):
            object.__setattr__(self, key, {fact: tuple(known) for fact, known in getattr(self, key).items()})
        if len(self.cells) != 3 or min(self.cells) < 1:
            raise ConfigError("cells", "three numbers from 1", f"{self.cells}", "correct it")
        for key, allowed in (("quantize", (None, "nf4")), ("answers", ("heads", "text"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(key, f"one of {allowed}", repr(getattr(self, key)), "choose one")
        if not self.instances and self.answers == "heads":
            found = "none to select from (`instances: false`)"
            raise ConfigError("model", "instances for the heads", found, "set `answers: text` too")


@dataclass(frozen=True, eq=False)
class Opened:
    """A scan the language model has read: its keys and values, and its states at the instance tokens (K, W)."""

    cache: Any
    items: torch.Tensor
    length: int


@dataclass(frozen=True, eq=False)
class Scores:
    """router (facts,) logits, selection (K,) logits, cache and state of a question; state (W,) is its last one."""

    router: torch.Tensor
    selection: torch.Tensor
    cache: Any
    state: torch.Tensor


class VisionLanguageModel(nn.Module):
    """Projector, language model with adapter, and heads."""

    def __init__(self, config: VlmConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config, self.tokenizer, self.prompt = config, tokenizer, make_prompt(tokenizer)
        self.llm = llm
        width = llm.get_input_embeddings().weight.shape[1]
        self.projector = Projector(width, config.visual_channels, config.instance_channels, config.perceiver)
        self.pointer = Pointer(width)
        self.router = Router(width, len(config.facts))
        self.lexical = Lexical(len(config.facts)).requires_grad_(False) if config.lexical else None
        self.quantiles = Quantiles(config.visual_channels, SCAN_FACTS, len(config.targets))
        self.labels = Labels(width, config.labels)
        self.calibration = Calibration()
        self._names: dict[str, torch.Tensor] = {}
        self.llm.requires_grad_(False)

    # -- loading and saving -------------------------------------------------------------------------------------------

    def add_adapter(self) -> None:
        """Put trainable LoRA layers into the language model (peft). Raises ConfigError for layers that it lacks."""
        from peft import LoraConfig, get_peft_model

        targets = self.config.lora_targets
        lora = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            lora_dropout=self.config.lora_dropout,
            use_dora=self.config.dora,
            use_rslora=self.config.rslora,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():  # peft asks transformers for an attribute that was renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            try:
                self.llm = get_peft_model(self.llm, lora)
            except ValueError as error:
                found = str(error).splitlines()[0]
                raise ConfigError("lora_targets", "linear layers of the language model", found, "correct it") from None

    def save(self, folder: str | Path, state: dict[str, torch.Tensor] | None = None) -> Path:
        """Write config, heads (float16), adapter and calibration; each file under a temporary name first.

        state: the weights, by the names of state_dict(), where they are gathered from several processes.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        state = self.state_dict() if state is None else state
        heads = {k: _stored(v) for k, v in state.items() if not k.startswith("llm.")}
        with replacing(folder / WEIGHTS) as temporary:
            save_file(heads, temporary)
        if self.has_adapter:
            from peft import get_peft_model_state_dict

            own = {k.removeprefix("llm."): v for k, v in state.items() if k.startswith("llm.")}
            adapter = {k: _stored(v) for k, v in get_peft_model_state_dict(self.llm, own).items()}
            with replacing(folder / f"{ADAPTER}.safetensors") as temporary:
                save_file(adapter, temporary)
        (folder / CALIBRATION).unlink(missing_ok=True)
        if self.calibration.curves:
            with replacing(folder / CALIBRATION) as temporary:
                temporary.write_text(json.dumps(self.calibration.curves, indent=1) + "\n")
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        return folder

    @property
    def has_adapter(self) -> bool:
        """Whether the language model carries LoRA layers."""
        return hasattr(self.llm, "peft_config")

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", precision: str = "auto") -> VisionLanguageModel:
        """Load what `save` wrote, with its language model. precision: of that, see vlm.llm.dtype_of.

        Raises CheckpointError where a part is missing or unfit.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise CheckpointError(folder, f"a model folder with {CONFIG}", "none", "train one or use `default`")
        try:
            data = json.loads((folder / CONFIG).read_text())
            config = VlmConfig(**data | {"facts": tuple(data.get("facts", FIRST_FACTS))})
            if strange := {fact for fact in config.facts if ":" not in fact} - set(NAMES):
                raise ValueError(f"facts this version does not know: {sorted(strange)}")
            llm, tokenizer = load_llm(config.llm, device, precision, config.quantize)
            state = {key: value.float() for key, value in load_file(folder / WEIGHTS).items()}
            trained, width = state["projector.kind"].shape[1], llm.get_input_embeddings().weight.shape[1]
            if trained != width:
                raise ValueError(f"weights for a language model of width {trained}, {config.llm} has {width}")
            model = VisionLanguageModel(config, llm, tokenizer)
            for key in SEES_FACTS:
                state[key] = _with_facts(state[key], model.get_parameter(key).shape[1])
            missing, unexpected = model.load_state_dict(state, strict=False)
            missing = [key for key in missing if not key.startswith("llm.")]
            if missing or unexpected:
                raise ValueError(f"weights missing {missing[:3]} or unexpected {unexpected[:3]}")
            adapter = folder / f"{ADAPTER}.safetensors"
            if adapter.is_file():
                from peft import set_peft_model_state_dict

                model.add_adapter()
                weights = {key: value.float() for key, value in load_file(adapter).items()}
                if set_peft_model_state_dict(model.llm, weights).unexpected_keys:
                    raise ValueError("the adapter has layers that the language model lacks")
            if (folder / CALIBRATION).is_file():
                model.calibration = Calibration(dict(json.loads((folder / CALIBRATION).read_text())))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            found, todo = " ".join(str(error).split())[:300], "fetch it again, or train it anew"
            raise CheckpointError(folder, "weights that fit the language model", found, todo) from None
        return model.to(device).eval()

    # -- the forward road ---------------------------------------------------------------------------------------------

    def visible(self, scene: Scene) -> Scene:
        """What of a scene this model is shown, see VlmConfig.visual and instances."""
        if not self.config.visual:
            scene = replace(scene, visual=scene.visual[:0])
        if not self.config.instances:
            scene = scene.showing([], scene.pooled[:0])
        return scene

    def scan_tokens(self, scene: Scene) -> torch.Tensor:
        """(P, W): the template's start and the scene's tokens; the last len(instances) rows are the instances."""
        embed = self.llm.get_input_embeddings()
        device = embed.weight.device
        before = embed(torch.tensor(self.prompt.before, device=device))
        arrays = (scene.facts, scene.visual, scene.pooled, scene.geometry)
        facts, visual, pooled, geometry = (torch.from_numpy(a).to(device) for a in arrays)
        names = [self._name(i.label) for i in scene.instances]
        named = torch.stack(names) if names else torch.zeros(0, before.shape[1], device=device)
        tokens = self.projector(facts, visual, pooled, geometry, named.float())
        return torch.cat([before, tokens.to(before.dtype)])

    def pack(self, scene: Scene, segments: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
        """States of a scan and of token segments that each follow it directly, unseen by each other.

        Returns the scan's states (P, W), all segments' states (sum of lengths, W) and each segment's slice of those.
        """
        scan = self.scan_tokens(scene)
        embed = self.llm.get_input_embeddings()
        start = len(scan)
        lengths = [len(segment) for segment in segments]
        text = embed(torch.tensor([t for segment in segments for t in segment], device=scan.device))
        total = start + sum(lengths)
        owner = torch.cat([torch.full((n,), k) for k, n in enumerate([start, *lengths])]).to(scan.device)
        seen = torch.ones(total, total, dtype=torch.bool, device=scan.device).tril()
        seen &= (owner[:, None] == owner[None]) | (owner[None] == 0)
        mask = torch.zeros(total, total, dtype=scan.dtype, device=scan.device).masked_fill(
            ~seen, torch.finfo(scan.dtype).min
        )
        positions = torch.cat([torch.arange(start), *(start + torch.arange(n) for n in lengths)]).to(scan.device)
        states = self._decoder()(
            inputs_embeds=torch.cat([scan, text])[None],
            attention_mask=mask[None, None],
            position_ids=positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        ends = np.cumsum([0, *lengths]).tolist()
        return states[:start], states[start:], [slice(a, b) for a, b in itertools.pairwise(ends)]

    @torch.inference_mode()
    def open(self, scene: Scene) -> Opened:
        """Read a scan once; `read` then answers any number of questions about it."""
        scan = self.scan_tokens(scene)
        out = self._decoder()(inputs_embeds=scan[None], use_cache=True)
        return Opened(out.past_key_values, out.last_hidden_state[0, len(scan) - len(scene.instances) :], len(scan))

    @torch.inference_mode()
    def read(self, scene: Scene, opened: Opened, text: str, options: tuple[str, ...], mention: Mention) -> Scores:
        """Scores of every head for one question."""
        ids = torch.tensor(self.prompt.question(text, options), device=opened.items.device)
        cache = copy.deepcopy(opened.cache)
        out = self._decoder()(
            inputs_embeds=self.llm.get_input_embeddings()(ids)[None], past_key_values=cache, use_cache=True
        )
        state = out.last_hidden_state[0, -1:].float()
        router = self.router(state)[0]
        if self.lexical:  # the product of both probabilities
            router = torch.log_softmax(router, 0) + torch.log_softmax(self.lexical([text])[0], 0)
        geometry = torch.from_numpy(scene.geometry).to(state.device)
        named = mention_features(scene, mention).to(state.device)
        selection = self.pointer(state, opened.items.float(), geometry, named[None])[0]
        return Scores(router, selection, out.past_key_values, out.last_hidden_state[0, -1])

    def interpret(
        self, scene: Scene, opened: Opened, question: Question, focus: Focus | None = None
    ) -> tuple[Reading, float]:
        """What a question asks for, and the probability that it is not about the scan.

        focus: the fact and the instances are known already; then the probability of the fact is the router's, so that
        an answer is as sure as the model agrees, and the question is about the scan.
        """
        mention = mentions_in(question.question, question.options, scene_classes(scene))
        scores = self.read(scene, opened, question.question, question.options, mention)
        selection = torch.sigmoid(scores.selection).cpu().numpy()
        fact, probability, off_topic = route(scores.router, self.config.facts, question.type, question.unit)
        fact = which_count(fact, question.question, scene, self.config.counted)
        if focus:
            fact, off_topic = focus.fact, 0.0
            known = fact in self.config.facts
            probability = float(torch.softmax(scores.router, 0)[self.config.facts.index(fact)]) if known else 1.0
            selection = np.array([float(instance.id in focus.instances) for instance in scene.instances])
        reading = Reading(
            question=question,
            scene=scene,
            mention=mention,
            fact=fact,
            fact_probability=probability,
            selection=selection,
            threshold=parse_threshold(question.question),
            quantiles=self.regress(scene).get(fact) if fact in self.config.targets else None,
            score_options=lambda options: self.option_likelihoods(scores, options),
            calibration=self.calibration,
            lacking=focus.lacking if focus else None,
            label_shares=self.label_shares(fact, scores),
            counted=self.config.counted.get(fact, ()),
        )
        return reading, off_topic

    @torch.inference_mode()
    def option_likelihoods(self, scores: Scores, options: tuple[str, ...]) -> np.ndarray:
        """(options,) probabilities: softmax over the mean log-likelihood per token of each option's words."""
        head = self.llm.get_output_embeddings()
        means = []
        for option in options:
            ids = torch.tensor(self.prompt.answer(option), device=scores.state.device)
            out = self._decoder()(
                inputs_embeds=self.llm.get_input_embeddings()(ids[:-1])[None] if len(ids) > 1 else None,
                past_key_values=copy.deepcopy(scores.cache),
            )
            states = torch.cat([scores.state[None], out.last_hidden_state[0]])
            log_p = torch.log_softmax(head(states).float(), dim=-1)
            means.append(float(log_p[torch.arange(len(ids)), ids].mean()))
        shares = np.exp(np.array(means) - max(means))
        return shares / shares.sum()

    @torch.inference_mode()
    def write(self, scene: Scene, opened: Opened, question: Question, most: int = 96) -> dict[str, Any]:
        """The answer in the language model's own words: of a classification the likeliest option, with its probability
        as confidence; else the likeliest token, one after the other, at most `most`.
        """
        scores = self.read(scene, opened, question.question, question.options, Mention((), (), False))
        if question.options and question.type in ("classification", None):
            shares = self.option_likelihoods(scores, question.options)
            choice = question.options[int(shares.argmax())]
            return {"text": choice, "choice": choice, "confidence": float(shares.max())}
        head, embed = self.llm.get_output_embeddings(), self.llm.get_input_embeddings()
        end = self.prompt.answer("")[0]
        state, cache, ids = scores.state, copy.deepcopy(scores.cache), list[int]()
        while len(ids) < most and (best := int(head(state).argmax())) != end:
            ids.append(best)
            token = embed(torch.tensor([[best]], device=state.device))
            out = self._decoder()(inputs_embeds=token, past_key_values=cache, use_cache=True)
            state, cache = out.last_hidden_state[0, -1], out.past_key_values
        return {"text": str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()}

    @torch.inference_mode()
    def label_shares(self, fact: str, scores: Scores) -> dict[str, float]:
        """The probability of each label of a fact of labels; nothing for another fact."""
        if fact not in self.config.labels:
            return {}
        shares = torch.softmax(self.labels(fact, scores.state.float()), dim=-1).tolist()
        return dict(zip(self.config.labels[fact], shares, strict=True))

    @torch.inference_mode()
    def regress(self, scene: Scene) -> dict[str, tuple[float, float, float]]:
        """Target -> its 0.1, 0.5 and 0.9 quantiles, in the fact's unit; nothing without visual cells."""
        if not len(scene.visual):
            return {}
        scale = self.config.regression_scale or {}
        device = self.projector.kind.device
        raw = self.quantiles(*(part.to(device) for part in quantile_inputs(scene, self.config.visual_channels)))
        out = {}
        for number, name in enumerate(self.config.targets):
            if name in scale:
                mean, spread = scale[name]
                low, middle, high = (float(v) * spread + mean for v in raw[number])
                out[name] = (low, middle, high)
        return out

    def _decoder(self) -> nn.Module:
        base = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        return base.get_decoder()

    def _name(self, label: str) -> torch.Tensor:
        if label not in self._names:
            embed = self.llm.get_input_embeddings()
            ids = self.tokenizer(" " + display(label), add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                self._names[label] = embed(torch.tensor(ids, device=embed.weight.device)).mean(0).clone()
        return self._names[label]


def _with_facts(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """The weights of an earlier version, which knew fewer facts of a scan: those that it lacks weigh nothing."""
    known = len(REGIONS)
    return F.pad(weight, (0, known)) if weight.shape[1] == inputs - known else weight


def _stored(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().cpu().half().contiguous()


def mention_features(scene: Scene, mention: Mention, hidden: bool = False) -> torch.Tensor:
    """(K, MENTION) float32: is the instance's class named, is another one, is none. hidden: as if none were named."""
    named = set() if hidden else set(mention.classes)
    rows = torch.zeros(len(scene.instances), MENTION)
    for row, instance in zip(rows, scene.instances, strict=True):
        row[0 if instance.label in named else 1 if named else 2] = 1.0
    return rows


def quantile_inputs(scene: Scene, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the regression head sees: the mean visual cell (channels,) and the scan's facts."""
    return torch.from_numpy(scene.visual[:, :channels].mean(axis=0)), torch.from_numpy(scene.facts)


def route(
    logits: torch.Tensor, facts: tuple[str, ...], kind: str | None, unit: str | None = None
) -> tuple[str, float, float]:
    """The likeliest fact of a declared kind and unit, its probability there, and that of off_topic among all.

    facts: the names of the logits.
    """
    everything = torch.softmax(logits, dim=0)
    allowed = facts_of(kind, unit, facts) or facts
    mask = torch.tensor([name in allowed for name in facts], device=logits.device)
    inside = torch.softmax(logits.masked_fill(~mask, -1e4), dim=0)
    best = int(inside.argmax())
    return facts[best], float(inside[best]), float(everything[facts.index("off_topic")])

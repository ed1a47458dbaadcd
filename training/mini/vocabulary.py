"""New words for a Mini that is trained: the text encoder learns on, beside a Stage C that stays as it is."""

from __future__ import annotations

import copy
import random

import torch
from torch import Tensor

from cascade_studio.stages.training.distributed import sum_gradients
from cascade_studio.stages.training.losses import add_training_noise, sample_times, velocity_weight
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .calling import list_strangers, say_both, strew
from .captions import (
    COLOUR_TEMPLATES,
    END,
    HELD_TEMPLATES,
    LENGTH,
    PLAIN_TEMPLATES,
    START,
    Fragment,
    batch_tokens,
    word_tokens,
)
from .compose import PAINTED
from .generators import HELD_EVERY, StageCPart, ease_decay, measure_held, repeat_common
from .language import TunedText, compare_tails, list_known_tokens
from .loop import Part, Place
from .nets import TRAINING, load_reader, load_trained, paint_sheet
from .scenes import Pool, Reader, Scenes, make_pool
from .subjects import COLOURS, LANGUAGES, Subject
from .towers import TextTower
from .words import FOREIGN_TEMPLATES, C, N, P, S, colour_words, speak

HELD_PICTURES, HELD_TIME = 96, 0.9


class WordsPart(Part):
    """All that a picture can be called comes to mean what its plain English caption means to the Stage C that is there.

    Three losses: that Stage C, whose weights stay, answers as it does to the plain caption; and that the pooled output,
    and what stands behind the end of the caption, are those of the plain one. Captions beside those of the pictures
    only see the last two, which cost little. The tower learns slowly, since English has to stay (a tenth of the
    captions are the plain ones); the rows of its tokens do not. It begins with the text encoder of ``words.start.pt``
    where the work folder has one. What ships is a mean of the text encoder before and after (Wortsman et al. 2022,
    "Robust fine-tuning"), ``KEPT`` of it from before: English is better in the one, other languages in the other.
    """

    name = "words"
    STEPS, SEED, LR, EMA_DECAY, DECAY = 6000, 9, 6e-4, 0.998, 0.01
    ROWS_LR = 6e-3
    BATCH, BESIDE, NOISY_FROM = 16, 240, 0.5
    DROP_TEXT, PLAINLY, BARE, STRANGE, LONG, FOREIGN, SHADES = 0.04, 0.1, 0.35, 0.35, 0.04, 0.65, 0.15
    WORDY = 32
    """Tokens of a caption and its padding, but for the share ``LONG`` of steps with all 77."""
    KEPT = 0.15
    """The share of the text encoder before in the one that ships."""
    AFTER: tuple[str, ...] = ("stage_c",)
    """Whose text encoder is the one before: the first part of these that has a result."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + self.SEED)
        self.net = load_trained(place, "stage_c", backend=TRAINING)
        before = [part for part in self.AFTER if place.weights(part).is_file()]
        self.teacher = load_trained(place, "text", *before[:1])
        self.scenes = Scenes(self.rng, shades=self.SHADES, **PAINTED)
        known = list_known_tokens(self.scenes.speaker).to(place.device)
        self.before = TunedText(self.teacher, known).state_dict()
        self.tuned = TunedText(self.begin(), known)
        self.strangers = list_strangers(self.scenes.subjects, self.tuned.stranger)
        self.ema = EMA(self.tuned, self.EMA_DECAY)
        rows, tower = self.learned = self.choose_parameters()
        self.state = {"text": self.tuned, "ema": self.ema}
        self.state["rows"] = Optimiser(rows, self.ROWS_LR, betas=(0.9, 0.98))
        if tower:
            self.state["tower"] = Optimiser(tower, self.LR, betas=(0.9, 0.98), weight_decay=self.DECAY)
        reader = load_reader(place)
        nets = {"reader": reader, "vision": load_trained(place, "vision")}
        subjects = repeat_common(self.scenes.subjects, StageCPart.COMMON, StageCPart.REST)
        self.pool = make_pool(place, "pool_c", self.scenes, subjects, nets)
        self.held = self.hold_out(reader)

    def begin(self) -> TextTower:
        """The text encoder to go on from."""
        earlier = self.place.read_start(self.name)
        if not earlier:
            return self.teacher
        tower = copy.deepcopy(self.teacher)
        tower.load_state_dict(earlier["text"])
        return tower

    def choose_parameters(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        """What learns: the rows of tokens, and the rest of the text encoder."""
        return [self.tuned.rows.weight], list(self.tuned.tower.parameters())

    def hold_out(self, reader: Reader) -> Pool:
        """Pictures on backgrounds that are never learned."""
        rng = random.Random(self.place.seed + self.SEED)
        subjects = rng.sample(range(len(self.scenes.subjects)), HELD_PICTURES)
        return make_pool(self.place, "held_c", Scenes(rng, **PAINTED), subjects, {"reader": reader}, held=True)

    def step(self, factor: float) -> dict[str, float]:
        taken = self.check() if self.ema.updates % HELD_EVERY == 0 else {}
        length = LENGTH if self.rng.random() < self.LONG else self.WORDY
        index = self.rng.sample(range(len(self.pool)), self.BATCH + self.BESIDE)
        said, plain = say_both(
            self.scenes,
            self.pool,
            index,
            bare=self.BARE,
            foreign=self.FOREIGN,
            dropped=self.DROP_TEXT,
            plainly=self.PLAINLY,
            length=self.WORDY,
        )
        said = [
            one if one == other else strew(one, self.rng, self.STRANGE, self.strangers, self.WORDY)
            for one, other in zip(said, plain)
        ]
        ids, meant = (batch_tokens(captions, length).to(self.place.device) for captions in (said, plain))
        with torch.no_grad(), self.place.autocast():
            wanted, wanted_pooled = (value.float() for value in self.teacher(meant))
        with self.place.autocast():
            hidden, pooled = (value.float() for value in self.tuned(ids))
        held = (pooled - wanted_pooled).square().mean() / wanted_pooled.square().mean()
        tails = compare_tails(hidden, wanted, ids, meant)
        part = slice(self.BATCH)
        answer = self.compare_answers(index[part], (hidden[part], pooled[part]), (wanted[part], wanted_pooled[part]))
        norm = self.update(answer + held + tails, factor)
        self.ema.decay = ease_decay(self.EMA_DECAY, self.ema.updates)
        self.ema.update(self.tuned)
        losses = {"answer": answer, "pooled": held, "tails": tails}
        return {**taken, **{name: float(value.detach()) for name, value in losses.items()}, "norm": norm}

    def update(self, loss: Tensor, factor: float) -> float:
        """One step of everything that learns; returns the norm of the rows' gradient."""
        optimisers = [self.state[name] for name in ("rows", "tower") if name in self.state]
        for optimiser in optimisers:
            optimiser.clear()
        crew, (rows, tower) = self.place.crew, self.learned
        (loss / crew.size).backward()
        sum_gradients([*rows, *tower], crew)
        return [optimiser.update(factor) for optimiser in optimisers][0]

    def compare_answers(self, index: list[int], said: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor]) -> Tensor:
        """How far apart what Stage C answers is, as v, given what the text encoder says of two captions each; for some
        pictures of the pool, mostly noisy. Against the loss of the noise itself this has no noise of its own.
        """
        x0 = self.pool.rows(index)["effnet"].to(self.place.device)
        t = self.NOISY_FROM + (1 - self.NOISY_FROM) * sample_times(len(x0), device=x0.device)
        seen = add_training_noise(x0, torch.randn_like(x0), t)
        image = x0.new_zeros(len(index), self.place.sizes.width)

        def ask(text: Tensor, pooled: Tensor) -> Tensor:
            with self.place.autocast():
                return self.net(seen.x, seen.r, clip_text=text, clip_text_pooled=pooled, clip_img=image).float()

        with torch.no_grad():
            wanted = ask(*plain)
        return ((ask(*said) - wanted).square().flatten(1).mean(1) * velocity_weight(seen.logsnr)).mean()

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """The loss of Stage C on pictures held out, called in three ways, close to pure noise."""
        text, found = self.average_text(), {}
        for way, captions in self.call_held().items():
            hidden, pooled = text(batch_tokens(captions).to(self.place.device))
            image = pooled.new_zeros(len(pooled), self.place.sizes.width)
            given = {"clip_text": hidden, "clip_text_pooled": pooled, "clip_img": image}
            x0 = self.held.rows(list(range(len(self.held))))["effnet"].to(self.place.device)
            found[f"held_{way}"] = sum(measure_held(self.place, self.net, x0, given, [HELD_TIME]).values())
        return found

    def call_held(self) -> dict[str, list[list[Fragment]]]:
        """The captions of :meth:`check`: the plain one, one with the last English name, one in another language."""
        ways: dict[str, list[list[Fragment]]] = {"plain": [], "names": [], "foreign": []}
        for row, (subject, colour) in enumerate(zip(self.held.subjects, self.held.colours)):
            plain = self.scenes.speaker.caption_plainly(subject, colour)
            ways["plain"].append(plain)
            ways["names"].append([self.scenes.speaker.names[subject]["en"][-1], *plain[1:]])
            language = LANGUAGES[1 + row % (len(LANGUAGES) - 1)]
            label = self.scenes.subjects[subject].labels[language]
            ways["foreign"].append([*speak(FOREIGN_TEMPLATES[language][0], label, colour_words(colour, language)[0])])
        return ways

    def average_text(self) -> TunedText:
        """The averaged text encoder, as it will ship."""
        text = self.ema.copy_of(self.tuned)
        with torch.no_grad():
            for name, value in text.state_dict().items():
                value.lerp_(self.before[name], self.KEPT)
        return text

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {"text": self.average_text().tensors()}

    def sheet(self) -> Tensor:
        """Sixteen held-out prompts, seen through the Previewer."""
        return paint_sheet(self.place, self.net, self.average_text(), self.scenes.prompts)


def list_english_tokens(subjects: list[Subject]) -> Tensor:
    """Tokens of the English captions that a Mini without everyday words learned from, and of the held-out ones."""
    templates = (*PLAIN_TEMPLATES, *COLOUR_TEMPLATES, *HELD_TEMPLATES)
    said = {part for template in templates for part in template} - {S, C, N, P}
    said |= {name for subject in subjects for name in (subject.labels["en"], *subject.tags)} | {*COLOURS}
    return torch.tensor(sorted({START, END, *(token for word in said for token in word_tokens(word))}))


def hold_rows(tuned: TunedText, tokens: Tensor) -> torch.nn.Parameter:
    """The token rows of ``tuned``, of which those of ``tokens``, and the one of all that nothing says, never get a
    gradient; nor does the tower.
    """
    tuned.tower.requires_grad_(False)
    rows = tuned.rows.weight
    free = torch.ones(len(rows), 1, device=rows.device)
    free[tuned.place[tokens]] = 0
    free[-1] = 0
    rows.register_hook(lambda gradient: gradient * free)
    return rows


class NewWordsPart(WordsPart):
    """As :class:`WordsPart`, but only the rows of tokens that no English caption had learn: what English captions say
    stays as it is, bit for bit, since neither their rows nor the tower change.
    """

    name = "new_words"
    BATCH, BESIDE, FOREIGN, KEPT = 24, 104, 0.8, 0.0
    AFTER = ("words", "stage_c")

    def begin(self) -> TextTower:
        """The one before, whose English has to stay."""
        return self.teacher

    def choose_parameters(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        """The token rows, of which those of English stay."""
        return [hold_rows(self.tuned, list_english_tokens(self.scenes.subjects).to(self.place.device))], []

"""Sentences around a subject and its background: what people write about a picture beside the two words that count.

:func:`make_phrase` puts an opening, the subject, the background and an ending together at random, some hundred thousand
ways in English. Each wording that measures (``HELD_TEMPLATES``, ``HELD_FOREIGN``) has words that none of these has; but
whoever wrote these knew those.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .words import C, N, S


@dataclass(frozen=True)
class Phrases:
    """Parts of a sentence, with ``{subject}`` left out of ``openings`` and ``firsts``: what comes before the subject,
    how the background is said after it (``behind``) or before it (``firsts``), and what may stand at the end.
    """

    openings: tuple[str, ...]
    behind: tuple[tuple[str, ...], ...]
    firsts: tuple[tuple[str, ...], ...]
    endings: tuple[str, ...]

    def fragments(self) -> set[str]:
        """Everything that a phrase can say beside subject and background."""
        found = {*self.openings, *self.endings}
        found |= {part for some in (*self.behind, *self.firsts) for part in some}
        return {part for part in found if part not in (C, N)}


PHRASES = {
    "en": Phrases(
        openings=(
            *("a", "an", "the", "my", "this", "some", "that", "our", "your", "another", "every", "a single", "just a"),
            *("a small", "a big", "a large", "a tiny", "a huge", "a cute", "a lovely", "a beautiful", "a pretty"),
            *("a funny", "a shiny", "a simple", "a great", "a cool", "a typical", "a very cute", "the best"),
            *(
                "a picture of a",
                "a picture of the",
                "a photo of a",
                "photo of",
                "a photograph of",
                "an image of",
                "image :",
            ),
            *(
                "a render of a",
                "a 3d render of a",
                "an illustration of a",
                "a painting of a",
                "painting of",
                "art of a",
            ),
            *(
                "a sketch of a",
                "a sticker of a",
                "sticker :",
                "an icon of a",
                "the icon of a",
                "the emoji for",
                "emoji :",
            ),
            *("clip art of a", "a cartoon of a", "a cartoon", "a logo with a", "a close-up of a", "a portrait of a"),
            *("please paint a", "paint a", "make a", "make me a", "create a", "create an image of", "generate a"),
            *("i want a", "i would like a", "i need a", "give me a", "can you paint a", "imagine a", "think of a"),
            *("there is a", "here is a", "we see a", "you see a", "look , a", "it is a", "this is a", "behold the"),
        ),
        behind=(
            ("on a", C, "background"),
            ("on a", C, "background"),
            ("on", C),
            ("on", C, "background"),
            ("with a", C, "background"),
            ("with", C, "background"),
            ("with a background in", C),
            ("and a", C, "background"),
            ("in front of a", C, "background"),
            ("in front of a", C, "wall"),
            ("in front of", C),
            ("before a", C, "background"),
            ("before", C),
            ("on a", C, "surface"),
            ("on", C, "paper"),
            ("on", C, "ground"),
            ("isolated on", C),
            ("placed on", C),
            ("in a", C, "room"),
            ("surrounded by", C),
            ("on top of", C),
            ("behind it all is", C),
            (",", C, "background"),
            (",", C),
            (", the background is", C),
            (", background", C),
            (", background :", C),
            (", everything else is", C),
            (", all in front of", C),
            (".", C, "background ."),
        ),
        firsts=(
            (C, "background ,"),
            (C, "background , a"),
            (C, "background :"),
            (C, "background and a"),
            ("on a", C, "background , a"),
            ("on", C, ": a"),
            ("on", C, ","),
            ("background :", C, ", subject :"),
            ("before a", C, "wall , a"),
            ("in front of", C, ", the"),
            ("a picture with a", C, "background and a"),
        ),
        endings=(
            *(
                ", high quality",
                ", best quality",
                ", 4k",
                ", 8k",
                ", hd",
                ", detailed",
                ", very detailed",
                ", masterpiece",
            ),
            *(
                ", centered",
                ", simple",
                ", sharp",
                ", glossy",
                ", soft light",
                ", studio light",
                ", cute style",
                ", minimal",
            ),
            *(", 3d", ", 3d style", ", vector art", ", digital art", ", trending", ", please", ", thank you", "!", "."),
            *(
                ", no text",
                ", square",
                ", smooth",
                ", clean",
                ", full view",
                ", isolated",
                ", like a sticker",
                ", emoji",
            ),
        ),
    ),
    "de": Phrases(
        openings=(
            *("ein", "eine", "einen", "der", "die", "das", "mein", "meine", "dieses", "ein kleines", "eine kleine"),
            *("ein großer", "ein schönes", "ein bild von", "bild :", "ein foto von", "ein foto :", "das symbol"),
            *("ein emoji :", "emoji für", "bitte male", "male mir", "ich möchte", "ich will", "hier ist", "das ist"),
        ),
        behind=(
            ("auf", C, "hintergrund"),
            ("auf", C, "grund"),
            ("auf", C, "papier"),
            ("auf", C, "untergrund"),
            ("vor", C, "hintergrund"),
            ("mit", C, "hintergrund"),
            (",", N, "hintergrund"),
            ("und", N, "hintergrund"),
        ),
        firsts=((N, "hintergrund ,"), ("auf", C, "hintergrund :"), ("vor", C, "hintergrund")),
        endings=(", bitte", ", hohe qualität", ", einfach", ", schön", "."),
    ),
    "fr": Phrases(
        openings=(
            *("un", "une", "le", "la", "les", "des", "mon", "ma", "un petit", "une petite", "un grand", "un joli"),
            *("une photo de", "une photo d'", "image :", "une image de", "l'icône de", "un emoji :", "emoji de"),
            *("voici", "voilà", "c'est", "je veux", "je voudrais", "peins", "fais-moi"),
        ),
        behind=(
            ("sur fond", C),
            ("sur un fond", C),
            ("sur du papier", C),
            ("devant un fond", C),
            ("devant un mur", C),
            (", fond", C),
            (", sur fond", C),
            ("et fond", C),
        ),
        firsts=(("fond", C, ","), ("sur fond", C, ":"), ("sur un fond", C, ",")),
        endings=(", simple", ", haute qualité", ", joli", ", merci", "."),
    ),
    "es": Phrases(
        openings=(
            *("un", "una", "el", "la", "los", "las", "mi", "este", "un pequeño", "una pequeña", "un gran", "un bonito"),
            *("una foto de", "foto :", "una imagen de", "imagen :", "el icono de", "un emoji de", "emoji :"),
            *("aquí hay", "esto es", "quiero", "quisiera", "pinta", "hazme"),
        ),
        behind=(
            ("sobre fondo", C),
            ("sobre un fondo", C),
            ("sobre papel", C),
            ("en un fondo", C),
            ("delante de un fondo", C),
            ("ante una pared", C),
            (", fondo", C),
            ("y fondo", C),
        ),
        firsts=(("fondo", C, ","), ("sobre fondo", C, ":"), ("sobre un fondo", C, ",")),
        endings=(", simple", ", alta calidad", ", bonito", ", por favor", "."),
    ),
    "it": Phrases(
        openings=(
            *("un", "una", "uno", "il", "la", "lo", "i", "le", "il mio", "un piccolo", "una piccola", "un grande"),
            *("una foto di", "foto :", "un'immagine di", "immagine :", "l'icona di", "un'emoji di", "emoji :"),
            *("ecco", "questo è", "voglio", "vorrei", "dipingi", "fammi"),
        ),
        behind=(
            ("su sfondo", C),
            ("su uno sfondo", C),
            ("su carta", C),
            ("davanti a uno sfondo", C),
            ("davanti a un muro", C),
            (", sfondo", C),
            ("e sfondo", C),
        ),
        firsts=(("sfondo", C, ","), ("su sfondo", C, ":"), ("su uno sfondo", C, ",")),
        endings=(", semplice", ", alta qualità", ", bello", ", per favore", "."),
    ),
    "pt": Phrases(
        openings=(
            *("um", "uma", "o", "a", "os", "as", "meu", "um pequeno", "uma pequena", "um grande", "um belo"),
            *("uma foto de", "foto :", "uma imagem de", "imagem :", "o ícone de", "um emoji de", "emoji :"),
            *("aqui está", "isto é", "quero", "gostaria de", "pinte", "faça"),
        ),
        behind=(
            ("em fundo", C),
            ("num fundo", C),
            ("sobre papel", C),
            ("sobre um fundo", C),
            ("diante de um fundo", C),
            ("diante de uma parede", C),
            (", fundo", C),
            ("e fundo", C),
        ),
        firsts=(("fundo", C, ","), ("em fundo", C, ":"), ("num fundo", C, ",")),
        endings=(", simples", ", alta qualidade", ", bonito", ", por favor", "."),
    ),
}


def make_phrase(language: str, rng: random.Random, named: bool = True) -> list[str]:
    """A template around subject and background, which is left out unless ``named``."""
    phrases = PHRASES[language]
    first = named and rng.random() < 0.15
    template = [*rng.choice(phrases.firsts)] if first else [rng.choice(phrases.openings)] if rng.random() < 0.8 else []
    template.append(S)
    if named and not first:
        template.extend(rng.choice(phrases.behind))
    if rng.random() < 0.25:
        template.append(rng.choice(phrases.endings))
    return template

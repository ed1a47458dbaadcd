"""Everyday words: how people name the commonest subjects, and the colours of backgrounds, in six languages.

:data:`EVERYDAY` lists the commonest subjects by their label, each with other words for it. ``make_names`` gives all
names of a subject by language: its labels, these words, and the head noun of a label ("apple" for "red apple", "Apfel"
for "roter Apfel") where no commoner subject has it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .subjects import COLOURS, LANGUAGES, Subject

EVERYDAY = """
grinning face: happy face, smiley | slightly smiling face: smiling face, smile | face with tears of joy: laughing face
| smiling face with heart-eyes: love face, face in love | smiling face with sunglasses: cool face | nerd face: nerd |
crying face: sad face | loudly crying face: sobbing face | sleeping face: asleep | angry face: mad face | winking
face: wink | thinking face: thinker | exploding head: mind blown | cowboy hat face: cowboy | clown face: clown |
skull: death's head | ghost: spook, halloween ghost | alien: extraterrestrial, martian | alien monster: space invader
| robot: android, bot, robot head | pile of poo: poop, poo | red heart: heart, love | broken heart: heartbreak | blue
heart | green heart | yellow heart | kiss mark: kiss, lips | collision: explosion, boom, bang | raised hand: hand,
high five | waving hand: hello, goodbye | thumbs up: like, thumb | thumbs down: dislike | ok hand: okay | victory
hand: peace sign, victory | raised fist: fist | clapping hands: applause | folded hands: prayer, praying hands |
handshake: shaking hands, deal | flexed biceps: muscle, strong arm | ear | nose | brain: mind | tooth | bone | eye |
eyes: pair of eyes | tongue | mouth | leg | foot | footprints: feet | baby: infant, newborn | child: kid | boy: little
boy | girl: little girl | man: guy, gentleman, adult man | woman: lady, adult woman | person: human, somebody | old
man: grandfather, grandpa, elderly man | old woman: grandmother, grandma, granny, elderly woman | police officer: cop,
policeman, police | detective: spy, sleuth | astronaut: spaceman, cosmonaut | firefighter: fireman | cook: chef |
farmer | teacher | student: graduate | artist: painter | scientist: chemist | mechanic | pilot | judge | health
worker: doctor, nurse | construction worker: builder | ninja | prince | princess | santa claus: santa, father
christmas | superhero: hero | mage: wizard, magician, sorcerer | fairy: pixie | vampire: dracula | mermaid: siren |
elf | genie | zombie: undead | baby angel: angel, cherub | person running: runner, jogger | person walking: walker |
person swimming: swimmer | person surfing: surfer | person biking: cyclist | skier | snowboarder | woman dancing:
dancer | dog: hound | dog face: puppy, doggy | cat: kitty | black cat | monkey: chimp | monkey face: ape | gorilla |
lion | tiger | leopard: cheetah, panther | wolf | fox | raccoon | horse: stallion, pony | unicorn | zebra | deer:
stag, reindeer | cow: cattle | ox: bull | pig: swine | boar: wild pig | ewe: sheep, lamb | ram | goat | camel:
dromedary | giraffe | elephant | rhinoceros: rhino | hippopotamus: hippo | mouse: little mouse | rat | hamster |
rabbit: bunny, hare | hedgehog: porcupine | bat: flying bat | bear: grizzly | polar bear: white bear | koala | panda |
sloth | kangaroo | turkey | chicken: hen | rooster: cock | baby chick: chick | bird: little bird, sparrow, songbird |
penguin | dove: pigeon | eagle: hawk, falcon | duck | swan | owl | flamingo | parrot | peacock | goose | frog: toad |
crocodile: alligator | turtle: tortoise | lizard: gecko | snake: serpent | dragon | t-rex: dinosaur, tyrannosaurus |
sauropod: brontosaurus | whale | dolphin | seal: sea lion | fish: trout | tropical fish | shark | octopus | jellyfish
| crab | lobster | shrimp: prawn | squid | snail: slug | butterfly: moth | ant | honeybee: bee | lady beetle: ladybug,
ladybird | beetle | spider | spider web: cobweb | scorpion | mosquito | fly: housefly | worm | bouquet: flowers, bunch
of flowers | cherry blossom | rose: red rose | sunflower | tulip: flower | hibiscus | seedling: sprout | potted plant:
plant, houseplant | evergreen tree: fir, pine tree, conifer | deciduous tree: tree, oak | palm tree: palm | cactus:
cacti | four leaf clover: clover | maple leaf | fallen leaf: leaf, autumn leaf | mushroom: toadstool | grapes: bunch
of grapes | watermelon | tangerine: orange fruit, mandarin | lemon: citrus | banana | pineapple | mango | red apple:
apple | green apple | pear | peach | cherries: cherry | strawberry: berry | blueberries: blueberry | kiwi fruit: kiwi
| tomato | olive | coconut | avocado | eggplant: aubergine | potato | carrot | ear of corn: corn, maize | hot pepper:
chili, chilli | bell pepper: pepper, paprika | cucumber: pickle | broccoli | garlic | onion | peanuts: nuts | bread:
loaf, loaf of bread, toast | croissant | baguette bread: baguette | pretzel | pancakes: pancake | waffle | cheese
wedge: cheese | poultry leg: chicken leg, drumstick | cut of meat: steak, meat | bacon | hamburger: burger,
cheeseburger | french fries: fries, chips | pizza: slice of pizza | hot dog: hotdog, sausage | sandwich | taco |
burrito | egg: eggs | cooking: fried egg, frying pan | green salad: salad | popcorn | butter | salt | rice ball:
onigiri | spaghetti: pasta, noodles | sushi | soft ice cream: ice cream cone, cone | ice cream: sundae | doughnut:
donut | cookie: biscuit | birthday cake: cake, gateau | cupcake: muffin | pie | chocolate bar: chocolate | candy:
sweets | lollipop | honey pot: honey | baby bottle | glass of milk: milk | hot beverage: coffee, cup of coffee, tea,
mug | teapot: kettle | wine glass: wine, red wine | cocktail glass: cocktail, martini | beer mug: beer | clinking
glasses: champagne | bubble tea | fork and knife: cutlery | spoon | kitchen knife: knife | jar | globe showing
europe-africa: earth, globe, world, planet earth | world map: map | compass | mountain | snow-capped mountain: alps |
volcano | camping: campsite | desert island: island | classical building: temple, museum | hut | house: home, building
| office building: skyscraper, tower block | hospital | school | factory | castle: fortress, palace | church: chapel |
mosque | fountain | tent | ferris wheel | circus tent: circus | locomotive: steam train | train: railway | bus: coach
| ambulance | fire engine: fire truck | police car | taxi: cab | automobile: car, auto, red car | pickup truck: pickup
| delivery truck: truck, lorry, van | tractor | racing car: race car, formula one | motorcycle: motorbike | motor
scooter: scooter, moped, vespa | bicycle: bike, cycle | skateboard | wheel: tire, tyre | fuel pump: gas pump |
vertical traffic light: traffic light, stoplight | stop sign | anchor | sailboat: sailing boat, boat, yacht |
speedboat: motorboat | ship: cruise ship, ocean liner | canoe: kayak | airplane: plane, aeroplane, jet | helicopter:
chopper | parachute | satellite | rocket: spaceship, space rocket | flying saucer: ufo | hourglass done: hourglass |
watch: wristwatch | alarm clock: clock | full moon | crescent moon: moon | sun: sunshine | ringed planet: saturn,
planet | star: yellow star | shooting star | cloud | cloud with rain: rain, rain cloud | cloud with lightning:
thunderstorm, storm | tornado: hurricane, whirlwind | rainbow | umbrella: open umbrella | high voltage: lightning,
flash, lightning bolt | snowflake: snow | snowman | fire: flame, flames | droplet: water drop, drop, water | water
wave: wave, sea, ocean | jack-o-lantern: pumpkin, halloween pumpkin | christmas tree: xmas tree | fireworks | balloon
| party popper: confetti, party | wrapped gift: gift, present | ribbon: bow | ticket | trophy: cup, prize | sports
medal: medal | 1st place medal: gold medal | soccer ball: football, ball | baseball | basketball | volleyball |
american football | tennis: tennis ball, racket | bowling: bowling ball | boxing glove | fishing pole: fishing rod |
ice skate: skates | skis: ski | sled: sledge | kite | bullseye: target, dartboard | pool 8 ball: eight ball, billiards
| crystal ball | magic wand: wand | video game: gamepad, game controller | joystick | game die: dice, die | puzzle
piece: puzzle, jigsaw | teddy bear: teddy | chess pawn: pawn, chess | artist palette: palette, paint | yarn: wool,
ball of wool | glasses: spectacles, eyeglasses | sunglasses: shades | necktie: tie | t-shirt: shirt | jeans: pants,
trousers | scarf | gloves: glove | coat: jacket | socks: sock | dress: gown | kimono | shorts | bikini | purse |
handbag: bag | shopping bags: shopping | backpack: rucksack, school bag | running shoe: shoe, sneaker, trainer |
hiking boot: boot | high-heeled shoe: heels, high heels | crown: tiara | top hat: hat | billed cap: cap, baseball cap
| graduation cap | military helmet: helmet | lipstick | ring: engagement ring | gem stone: diamond, jewel, gem |
megaphone | bell | musical note: note | microphone: mic | headphone: headphones | radio | saxophone: sax | trumpet |
accordion | guitar: electric guitar | violin: fiddle | banjo | drum | flute | musical keyboard: piano | mobile phone:
phone, smartphone, cell phone | telephone: landline | battery | electric plug: plug | laptop: notebook computer |
desktop computer: computer, pc, monitor | printer | keyboard | computer mouse | floppy disk: diskette | optical disk:
cd | movie camera: film camera | television: tv, television set | camera: photo camera | magnifying glass tilted left:
magnifying glass, magnifier, loupe | candle | light bulb: bulb, lamp, idea | flashlight: torch | closed book: book |
open book | books: stack of books | scroll | newspaper | coin: gold coin | money bag: bag of money, money | dollar
banknote: dollar, banknote | credit card | envelope: letter, mail | package: parcel, box, cardboard box | postbox:
mailbox | pencil | pen: ballpoint | paintbrush: brush | crayon | briefcase: suitcase | file folder: folder | calendar
| clipboard | pushpin: pin, thumbtack | paperclip | straight ruler: ruler | scissors: pair of scissors | wastebasket:
trash can, bin | locked: lock, padlock | key | hammer | axe: hatchet | crossed swords: swords, sword | dagger | bomb |
bow and arrow: bow and arrows, archery | shield | wrench: spanner | screwdriver | gear: cog, cogwheel | balance scale:
scales, scale | link | chains: chain | magnet | ladder | test tube | dna | microscope | telescope | syringe:
injection, vaccine | pill: medicine, tablet | stethoscope | door | mirror | window | bed | couch and lamp: sofa, couch
| chair: stool | toilet: loo | bathtub: bath, tub | razor | broom | basket | bucket: pail | soap | toothbrush | sponge
| shopping cart: trolley, cart | cigarette: smoke | coffin: casket | headstone: grave, tombstone
"""

COLOUR_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "white": {"de": ("weißem",), "fr": ("blanc",), "es": ("blanco",), "it": ("bianco",), "pt": ("branco",)},
    "black": {"de": ("schwarzem",), "fr": ("noir",), "es": ("negro",), "it": ("nero",), "pt": ("preto",)},
    "gray": {"en": ("grey",), "de": ("grauem",), "fr": ("gris",), "es": ("gris",), "it": ("grigio",), "pt": ("cinza",)},
    "red": {"de": ("rotem",), "fr": ("rouge",), "es": ("rojo",), "it": ("rosso",), "pt": ("vermelho",)},
    "orange": {"de": ("orangem",), "fr": ("orange",), "es": ("naranja",), "it": ("arancione",), "pt": ("laranja",)},
    "yellow": {"de": ("gelbem",), "fr": ("jaune",), "es": ("amarillo",), "it": ("giallo",), "pt": ("amarelo",)},
    "green": {"de": ("grünem",), "fr": ("vert",), "es": ("verde",), "it": ("verde",), "pt": ("verde",)},
    "teal": {
        "en": ("turquoise",),
        "de": ("türkisem",),
        "fr": ("turquoise",),
        "es": ("turquesa",),
        "it": ("turchese",),
        "pt": ("turquesa",),
    },
    "blue": {"de": ("blauem",), "fr": ("bleu",), "es": ("azul",), "it": ("blu",), "pt": ("azul",)},
    "purple": {
        "en": ("violet",),
        "de": ("lila",),
        "fr": ("violet",),
        "es": ("morado",),
        "it": ("viola",),
        "pt": ("roxo",),
    },
    "pink": {"de": ("rosa",), "fr": ("rose",), "es": ("rosa",), "it": ("rosa",), "pt": ("rosa",)},
    "brown": {"de": ("braunem",), "fr": ("brun", "marron"), "es": ("marrón",), "it": ("marrone",), "pt": ("marrom",)},
}
"""Other words for each background colour by language; German ones in the dative, see :func:`nominative`."""

SHADES: dict[str, tuple[int, int, int]] = {
    "light blue": (160, 200, 245),
    "dark blue": (20, 40, 110),
    "sky blue": (110, 185, 240),
    "navy blue": (18, 32, 80),
    "light green": (160, 220, 150),
    "dark green": (20, 80, 40),
    "lime green": (150, 215, 50),
    "light gray": (200, 200, 202),
    "dark gray": (70, 70, 74),
    "light pink": (250, 205, 220),
    "hot pink": (245, 70, 150),
    "dark red": (120, 20, 25),
    "light yellow": (252, 238, 160),
    "light purple": (195, 160, 225),
    "dark purple": (70, 30, 100),
    "dark brown": (75, 45, 25),
}
"""Two-word colours, in sRGB; no held-out prompt names one."""

S, C, N, P = "{subject}", "{colour}", "{colour as subject}", "{colour!}"
"""Subject and background in a template; the German colour also before its noun (``nominative``) and behind it
(``predicative``)."""
FOREIGN_TEMPLATES: dict[str, tuple[list[str], ...]] = {
    "de": (
        [S, "auf", C, "hintergrund"],
        ["ein", S, "auf", C, "hintergrund"],
        [S, ",", N, "hintergrund"],
        [S, "vor", C, "hintergrund"],
        ["ein bild von", S, "auf", C, "hintergrund"],
    ),
    "fr": ([S, "sur fond", C], ["un", S, "sur un fond", C], [S, ", fond", C], ["une image de", S, "sur fond", C]),
    "es": (
        [S, "sobre fondo", C],
        ["un", S, "sobre un fondo", C],
        [S, ", fondo", C],
        ["una imagen de", S, "sobre fondo", C],
    ),
    "it": (
        [S, "su sfondo", C],
        ["un", S, "su uno sfondo", C],
        [S, ", sfondo", C],
        ["un'immagine di", S, "su sfondo", C],
    ),
    "pt": ([S, "em fundo", C], ["um", S, "num fundo", C], [S, ", fundo", C], ["uma imagem de", S, "em fundo", C]),
}
HELD_FOREIGN = {
    "de": [S, "gezeichnet auf", C, "hintergrund"],
    "fr": ["dessin :", S, "avec un fond", C],
    "es": ["dibujo de", S, "con fondo", C],
    "it": ["disegno di", S, "con sfondo", C],
    "pt": ["desenho de", S, "com fundo", C],
}
"""Only for the measure of languages (``evaluate``)."""


@lru_cache(maxsize=1)
def everyday() -> dict[str, tuple[str, ...]]:
    """The commonest subjects by label, with other words for each."""
    entries = (entry.partition(":") for entry in EVERYDAY.replace("\n", " ").split("|"))
    return {
        label.strip(): tuple(word.strip() for word in words.split(",") if word.strip()) for label, _, words in entries
    }


def head_noun(label: str, language: str) -> str:
    """The noun that a label is about: its last word in English and German, else its first; "" for whole sentences."""
    words = re.split(r"[\s:,]+", label)
    if not 1 < len(words) <= 3:
        return ""
    return words[-1] if language in ("en", "de") else words[0]


def make_names(subjects: list[Subject]) -> list[dict[str, tuple[str, ...]]]:
    """For each subject its names by language; no name is another subject's as well.

    A name goes to the first who claims it: labels first, then everyday words, then head nouns of the commonest
    subjects, then those of the others, then tags that only one subject has.
    """
    common = everyday()
    order = sorted(range(len(subjects)), key=lambda i: subjects[i].labels["en"] not in common)
    taken: dict[tuple[str, str], int] = {}
    names: list[dict[str, list[str]]] = [{language: [] for language in LANGUAGES} for _ in subjects]

    def claim(language: str, name: str, index: int) -> None:
        if name and name not in COLOURS and taken.setdefault((language, name), index) == index:
            if name not in names[index][language]:
                names[index][language].append(name)

    for index in order:
        for language, label in subjects[index].labels.items():
            claim(language, label, index)
    for index in order:
        for word in common.get(subjects[index].labels["en"], ()):
            claim("en", word, index)
    for index in order:
        for language, label in subjects[index].labels.items():
            claim(language, head_noun(label, language), index)
    owners: dict[str, set[int]] = {}
    for index, subject in enumerate(subjects):
        for tag in subject.tags:
            owners.setdefault(tag, set()).add(index)
    for tag, indices in owners.items():
        if len(indices) == 1:
            claim("en", tag, *indices)
    return [{language: tuple(found) for language, found in entry.items()} for entry in names]


def colour_words(colour: str, language: str) -> tuple[str, ...]:
    """Words for a background colour as the templates of ``language`` take them; its English name where it has none."""
    words = COLOUR_WORDS.get(colour, {}).get(language, ())
    return (colour, *words) if language == "en" else words or (colour,)


def nominative(word: str) -> str:
    """The German word of a colour where the background is the subject: "blauer" for "blauem", "rosa" as it is."""
    return f"{word[:-1]}r" if word.endswith("em") else word


def predicative(word: str) -> str:
    """The German word of a colour behind the background: "blau" for "blauem", "orange" for "orangem"."""
    return word.removesuffix("m" if word == "orangem" else "em")


def speak(template: list[str], name: str, colour: str = "") -> list[str]:
    """The fragments of ``template`` with the words for subject and background put in."""
    given = {S: name, C: colour, N: nominative(colour), P: predicative(colour)}
    return [given.get(part, part) for part in template]

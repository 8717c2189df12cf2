"""The embedded base's pictures and captions, at 64x64 on white: four styles to learn from, and Fluent 3D, which only the judge sees.

All from npm: npm install --ignore-scripts emoji-datasource@16.0.0 emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
    noto-blob@npm:emoji-datasource-google@3.0.0 emojione@2.2.7 @lobehub/fluent-emoji-3d@1.1.0
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
STYLES = ("noto", "twemoji", "blob", "emojione")  # what is drawn of a name, and how, must vary apart: else both are learnt by heart

# The word for the class of each emoji subcategory: what `sks <class>` needs to mean something to the base.
CLASSES = {
    "animal-amphibian": "animal", "animal-bird": "bird", "animal-bug": "insect", "animal-mammal": "animal",
    "animal-marine": "sea animal", "animal-reptile": "reptile", "plant-flower": "flower", "plant-other": "plant",
    "dishware": "kitchen tool", "drink": "drink", "food-asian": "food", "food-fruit": "fruit", "food-prepared": "food",
    "food-sweet": "sweet", "food-vegetable": "vegetable", "award-medal": "medal", "event": "celebration",
    "game": "game", "sport": "sport", "arts & crafts": "craft", "clothing": "clothing", "computer": "computer",
    "household": "household object", "light & video": "device", "lock": "lock", "mail": "mailbox", "medical": "medicine",
    "money": "money", "music": "music", "musical-instrument": "instrument", "office": "office object",
    "book-paper": "book", "phone": "phone", "science": "science", "sound": "sound", "tool": "tool",
    "writing": "pen", "body-parts": "body part", "heart": "heart", "face-smiling": "face", "face-affection": "face",
    "face-tongue": "face", "face-costume": "mask", "face-glasses": "face", "face-hat": "face", "face-negative": "face",
    "face-unwell": "face", "face-concerned": "face", "emotion": "symbol", "monkey-face": "animal", "cat-face": "cat",
    "hand-fingers-closed": "hand", "hand-fingers-open": "hand", "hand-fingers-partial": "hand",
    "place-building": "building", "place-geographic": "landscape", "place-other": "place", "place-religious": "building",
    "place-map": "map", "sky & weather": "weather", "time": "clock", "transport-air": "aircraft",
    "transport-ground": "vehicle", "transport-water": "ship", "hotel": "object", "other-object": "object",
    "person-fantasy": "person", "person-role": "person", "person": "person",
}  # fmt: skip

# Whole groups of near-identical or abstract pictures, and single names that a person could not tell apart at 64 px.
LEFT_OUT_GROUPS = {"person", "person-role", "person-fantasy", "mail", "face-concerned", "cat-face", "body-parts"}
LEFT_OUT = """
dove;turkey;duck;black bird;bird;front-facing baby chick;hatching chick;chicken;feather;wing;goose;dodo;phoenix;eagle;
spider web;microbe;fly;worm;cricket;beetle;mosquito;cockroach;rat;mouse;ox;water buffalo;cow;tiger;rabbit;cat;horse;
ram;goat;monkey;service dog;dog;pig;boar;poodle;dromedary camel;guide dog;bison;donkey;moose;badger;mouse face;
seal;oyster;fish;whale;dragon;blossom;rosette;white flower;wilted flower;leaf fluttering in wind;
leafless tree;empty nest;nest with eggs;herb;shamrock;ear of rice;seedling;jar;fork and knife;amphora;
teacup without handle;clinking glasses;pouring liquid;glass of milk;mate drink;ice cube;tumbler glass;beverage box;
rice cracker;curry and rice;steaming bowl;roasted sweet potato;oden;fish cake with swirl design;fortune cookie;moon cake;
takeout box;dumpling;melon;green apple;lime;olive;burrito;stuffed flatbread;bowl with spoon;canned food;falafel;
flatbread;tamale;fondue;shallow pan of food;pot of food;meat on bone;butter;ice cream;shaved ice;custard;brown mushroom;
ginger root;pea pod;root vegetable;leafy green;potato;beans;chestnut;performing arts;framed picture;ball of yarn;knot;
spool of thread;sewing needle;military medal;third place medal;second place medal;sports medal;fireworks;
firework sparkler;confetti ball;tanabata tree;pine decoration;japanese dolls;carp streamer;wind chime;
moon viewing ceremony;reminder ribbon;admission tickets;red gift envelope;firecracker;sparkles;ribbon;
mahjong tile red dragon;playing card black joker;flower playing cards;mirror ball;magic wand;direct hit;
black spade suit;black club suit;black heart suit;black diamond suit;pistol;nesting dolls;rugby football;softball;
field hockey stick and ball;lacrosse stick and ball;cricket bat and ball;ice hockey stick and puck;ski and ski boot;sled;
diving mask;flag in hole;ice skate;badminton racquet and shuttlecock;running shirt with sash;martial arts uniform;
label;page with curl;page facing up;bookmark tabs;ledger;notebook;notebook with decorative cover;open book;orange book;
bookmark;rolled-up newspaper;closed book;womans hat;purse;womans clothes;one-piece swimsuit;briefs;coat;lab coat;sari;
flat shoe;womans sandal;womans boots;mans shoe;hair pick;prayer beads;pouch;safety vest;military helmet;kimono;
ballet shoes;thong sandal;goggles;minidisc;dvd;trackball;low battery;optical disc;personal computer;elevator;mirror;razor;
lotion bottle;safety pin;roll of paper;sponge;plunger;mouse trap;bubbles;window;shower;couch and lamp;
film frames;camera with flash;videocassette;right-pointing magnifying glass;izakaya lantern;diya lamp;video camera;
film projector;lock with ink pen;closed lock with key;open lock;key;adhesive bandage;x-ray;crutch;
banknote with yen sign;banknote with euro sign;banknote with pound sign;chart with upwards trend and yen sign;receipt;
money with wings;level slider;control knobs;studio microphone;multiple musical notes;musical score;flute;long drum;banjo;
open file folder;calendar;card index;chart with upwards trend;chart with downwards trend;bar chart;
clipboard;linked paperclips;card index dividers;card file box;file cabinet;wastebasket;spiral notepad;spiral calendar;
round pushpin;triangular ruler;smoking symbol;placard;identification card;hamsa;coffin;funeral urn;moyai;
telephone receiver;pager;fax machine;mobile phone with rightwards arrow at left;satellite antenna;petri dish;alembic;
public address loudspeaker;postal horn;speaker with cancellation stroke;speaker;speaker with one sound wave;
speaker with three sound waves;bell with cancellation stroke;link symbol;nut and bolt;clamp;probing cane;
hammer and wrench;hammer and pick;hook;chains;broken chain;pick;boomerang;carpentry saw;pen;fountain pen;black nib;memo;
love letter;beating heart;two hearts;sparkling heart;growing heart;heart with arrow;revolving hearts;heart decoration;
white heart;light blue heart;grey heart;pink heart;heart exclamation;mending heart;heavy black heart;heart with ribbon;
grinning face with smiling eyes;smiling face with open mouth;smiling face with open mouth and smiling eyes;
smiling face with open mouth and cold sweat;smiling face with smiling eyes;slightly smiling face;
smiling face with open mouth and tightly-closed eyes;upside-down face;rolling on the floor laughing;melting face;
kissing face;kissing face with smiling eyes;kissing face with closed eyes;smiling face with smiling eyes and three hearts;
smiling face with tear;white smiling face;face savouring delicious food;face with stuck-out tongue;
face with stuck-out tongue and tightly-closed eyes;grinning face with one large and one small eye;japanese ogre;
japanese goblin;face with monocle;disguised face;imp;pouting face;face with look of triumph;
serious face with symbols covering mouth;skull and crossbones;face with spiral eyes;dizzy face;sneezing face;
face with thermometer;face with open mouth vomiting;shocked face with exploding head;face with uneven eyes and wavy mouth;
eye in speech bubble;kiss mark;sleeping symbol;splashing sweat symbol;dash symbol;dizzy symbol;thought balloon;hole;
left speech bubble;right anger bubble;anger symbol;hear-no-evil monkey;speak-no-evil monkey;left-facing fist;
right-facing fist;raised fist;thumbs down sign;hand with fingers splayed;raised back of hand;rightwards hand;leftwards hand;
raised hand with part between middle and ring fingers;palm down hand;palm up hand;leftwards pushing hand;
rightwards pushing hand;pinched fingers;pinching hand;call me hand;hand with index and middle fingers crossed;
i love you hand sign;hand with index finger and thumb crossed;waving hand sign;building construction;houses;derelict house;
house with garden;japanese post office;european post office;hotel;love hotel;convenience store;department store;
japanese castle;wedding;rock;wood;school;bank;office building;camping;beach with umbrella;desert;national park;
mount fuji;mountain;globe with meridians;silhouette of japan;earth globe americas;earth globe asia-australia;foggy;
night with stars;sunrise over mountains;sunrise;cityscape at dusk;sunset over buildings;bridge at night;cityscape;
playground slide;kaaba;synagogue;hindu temple;closed umbrella;milky way;new moon symbol;waxing crescent moon symbol;
first quarter moon symbol;waxing gibbous moon symbol;waning gibbous moon symbol;last quarter moon symbol;
waning crescent moon symbol;new moon with face;first quarter moon with face;last quarter moon with face;
shooting star;sun behind small cloud;sun behind large cloud;sun behind rain cloud;fog;umbrella;
snowman without snow;umbrella on ground;cloud with lightning and rain;cloud with snow;full moon with face;comet;wind face;
mantelpiece clock;timer clock;hourglass with flowing sand;stopwatch;seat;suspension railway;mountain cableway;
aerial tramway;small airplane;airplane departure;airplane arriving;parachute;satellite;railway car;high-speed train;train;metro;light rail;
station;tram car;oncoming bus;bus stop;minibus;oncoming police car;oncoming taxi;oncoming automobile;
recreational vehicle;articulated lorry;monorail;mountain railway;trolleybus;horizontal traffic light;construction sign;
motorway;railway track;wheel;motorized wheelchair;manual wheelchair;auto rickshaw;speedboat;motor boat;passenger ship;ferry;
high-speed train with bullet nose;pickup truck;bellhop bell;nazar amulet;chopsticks;headstone
"""

# Named by the judge, but not taught to the denoiser: fewer names learned well beat more learned vaguely.
NOT_TAUGHT = """
water wave;full moon symbol;sun with face;glowing star;thermometer;fallen leaf;hibiscus;tangerine;rice ball;cooked rice;spaghetti;dango;
fried shrimp;shortcake;bento box;sake bottle and cup;tropical drink;clinking beer mugs;baby bottle;bottle with popping cork;party popper;
school satchel;carousel horse;roller coaster;fishing pole and fish;movie camera;circus tent;ticket;clapper board;slot machine;billiards;
bowling;musical keyboard;violin;desert island;stadium;hospital;factory;bow and arrow;leopard;black cat;sheep;bug;blowfish;horse face;
hamster face;wolf face;polar bear;pig nose;sign of the horns;bikini;handbag;alien monster;barber pole;syringe;bouquet;hundred points symbol;
credit card;banknote with dollar sign;floppy disk;file folder;tear-off calendar;straight ruler;newspaper;scroll;radio;electric plug;
electric torch;microscope;crystal ball;mosque;paintbrush;crayon;joystick;printer;computer mouse;world map;tokyo tower;statue of liberty;
smiling face with horns;face throwing a kiss;see-no-evil monkey;steam locomotive;tram;oil drum;shopping trolley;hut;canoe;roller skate;
bathtub;toilet;bed;face with head-bandage;goal net;curling stone;flying disc;green salad;peanuts;cut of meat;bagel;
face with party horn and party hat;hiking boot;scorpion;deer;lizard;rhinoceros;shrimp;zebra face;llama;hippopotamus;mammoth;orangutan;
skunk;beaver;salt shaker;onion;waffle;bubble tea;scarf;gloves;test tube;dna double helix;compass;abacus;toolbox;brick;luggage;broom;basket;
bar of soap;shorts;stethoscope;yo-yo;pinata;maracas;harp;shovel;accordion;ladder;bucket;toothbrush;folding hand fan;lotus;coral;hyacinth;
blueberries;hourglass;keyboard;chess pawn;hot springs;crossed swords;balance scale;shinto shrine;church;fountain;
tent;fuel pump;rescue worker\N{RIGHT SINGLE QUOTATION MARK}s helmet;
classical building;dragon face;cooking;fork and knife with plate;umbrella with rain drops;money-mouth face
"""

# Shorter or plainer names than Unicode's.
RENAMED = {
    "hocho": "kitchen knife", "aubergine": "eggplant", "ear of maize": "corn", "public address loudspeaker": "loudspeaker",
    "slice of pizza": "pizza", "personal computer": "laptop", "extraterrestrial alien": "alien", "lady beetle": "ladybug",
    "black sun with rays": "sun", "white medium star": "star", "high voltage sign": "lightning bolt", "octagonal sign": "stop sign",
    "electric light bulb": "light bulb", "left-pointing magnifying glass": "magnifying glass", "dna double helix": "dna",
    "closed mailbox with raised flag": "mailbox", "fisted hand sign": "fist", "thumbs up sign": "thumbs up", "ok hand sign": "ok hand",
    "smiling face with sunglasses": "face with sunglasses", "smiling face with heart-shaped eyes": "face with heart eyes",
    "earth globe europe-africa": "earth globe", "police cars revolving light": "police light", "cloud with lightning": "lightning cloud",
    "sauropod": "long-necked dinosaur", "t-rex": "t-rex dinosaur", "automobile": "red car", "black scissors": "scissors",
    "crocodile": "green crocodile", "hundred points symbol": "hundred points",
    "collision symbol": "explosion", "house building": "house",
    "drop of blood": "blood drop", "cheering megaphone": "megaphone", "black telephone": "telephone",
    "banknote with dollar sign": "dollar bill", "soft ice cream": "ice cream cone", "tennis racquet and ball": "tennis racket",
    "basketball and hoop": "basketball", "table tennis paddle and ball": "table tennis", "fishing pole and fish": "fishing pole",
    "bactrian camel": "camel", "ringed planet": "planet saturn", "mobile phone": "mobile phone", "vertical traffic light": "traffic light",
}  # fmt: skip

# Never shown to the base, in either style, under any caption: the new subjects of DreamBooth and Textual Inversion.
HELD_OUT = """
otter;raccoon;hedgehog;koala;kangaroo;sloth;flamingo;owl;peacock;squid;lobster;long-necked dinosaur;unicorn face;
chipmunk;gorilla;pineapple;taco;doughnut;avocado;strawberry;pretzel;cupcake;sushi;mango;teddy bear;guitar;trophy;
crown;telescope;kite;jack-o-lantern;top hat;alarm clock;helicopter;fire engine;tractor;sailboat;cactus;sunflower;
hamburger
"""


def words(block: str) -> set[str]:
    return {name.strip() for name in block.replace("\n", "").split(";") if name.strip()}


@dataclass(frozen=True)
class Emoji:
    name: str
    kind: str  # the class word
    aliases: tuple[str, ...]
    unified: str  # hyphen-joined code points, upper case
    pictures: dict[str, Path]  # by style: noto and twemoji always, blob and emojione of the older names
    fluent: Path | None
    held_out: bool
    named: bool  # the judge knows its name: not in a left-out group or list
    taught: bool  # the denoiser learns it


def drawn(folder: Path, codes: list[str]) -> Path | None:
    """The first of an emoji's pictures that exists, by its code points, whose variation selector some packages leave out."""
    files = [folder / f"{c.lower()}{ending}" for c in codes for ending in (".png", ".webp")]
    return next((f for f in files if f.exists()), None)


def emojis(node_modules: Path) -> list[Emoji]:
    """Every emoji but flags, symbols, skin tones and families, in Unicode's order."""
    folders = {
        "noto": node_modules / "emoji-datasource-google" / "img" / "google" / "64",
        "twemoji": node_modules / "emoji-datasource-twitter" / "img" / "twitter" / "64",
        "blob": node_modules / "noto-blob" / "img" / "google" / "64",
        "emojione": node_modules / "emojione" / "assets" / "png",
    }
    held_out, left_out, not_taught, found = words(HELD_OUT), words(LEFT_OUT), words(NOT_TAUGHT), []
    for e in json.loads((node_modules / "emoji-datasource" / "emoji.json").read_text(encoding="utf-8")):
        unplaced = e["category"] in ("Flags", "Symbols", "Component") or e["subcategory"] == "family"
        if unplaced or not (e["has_img_google"] and e["has_img_twitter"]):
            continue
        original = e["name"].lower()
        name = RENAMED.get(original, original)
        codes = [e["unified"], e["non_qualified"] or e["unified"], e["unified"].replace("-FE0F", "")]
        aliases = tuple(
            a for a in (s.replace("_", " ").replace("-", " ") for s in e["short_names"]) if a not in (name, name.replace("-", " "))
        )
        named = (
            e["subcategory"] in CLASSES
            and e["subcategory"] not in LEFT_OUT_GROUPS
            and original not in left_out
            and not original.startswith("clock face")
            and name not in held_out
        )
        found.append(
            Emoji(
                name=name,
                kind=CLASSES.get(e["subcategory"], "person"),
                aliases=aliases,
                unified=e["unified"],
                pictures={s: p for s in STYLES if (p := drawn(folders[s], codes))},
                fluent=drawn(node_modules / "@lobehub" / "fluent-emoji-3d" / "assets", codes),
                held_out=name in held_out,
                named=named,
                taught=named and original not in not_taught,
            )
        )
    unknown = (held_out | left_out | not_taught) - {e.name for e in found} - RENAMED.keys()
    if unknown:
        raise SystemExit(f"error: names in the lists that no emoji has: {sorted(unknown)}")
    return found


def on_white(path: Path, size: int = SIZE) -> Image.Image:
    """RGB, `size` x `size`: composited on white first, then resized, so that no dark fringe appears."""
    rgba = Image.open(path).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def pixels(paths: list[Path]) -> np.ndarray:
    """[N, 3, 64, 64] float32 in [-1, 1]."""
    stack = np.stack([np.asarray(on_white(p)) for p in paths])
    return (stack.transpose(0, 3, 1, 2).astype(np.float32) / 127.5) - 1.0


def captions(e: Emoji, style: str) -> list[tuple[str, float]]:
    """Captions of one picture with their probabilities."""
    out = [(f"{e.name}, {style} style", 0.6)]
    out += [(f"{a}, {style} style", 0.12 / len(e.aliases)) for a in e.aliases]
    out += [(e.name, 0.2), (f"{e.kind}, {style} style", 0.08)]
    total = sum(p for _, p in out)
    return [(c, p / total) for c, p in out]

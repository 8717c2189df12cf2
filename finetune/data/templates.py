"""Sentences in which a new token is said where a picture has no caption; `{}` is the token. Our own wording."""

OBJECT = (
    "{}",
    "a picture of {}",
    "a picture of one {}",
    "a photo of {}",
    "a close photo of {}",
    "a photo of {} from afar",
    "a clear photo of {}",
    "a bright photo of {}",
    "a dim photo of {}",
    "a small {} seen whole",
    "{} in the middle of the picture",
    "{} on a plain ground",
    "here is {}",
    "this is {}",
    "a drawing of {}",
    "{}, nothing else",
)

STYLE = (
    "{}",
    "a picture in the manner of {}",
    "a painting in the manner of {}",
    "a drawing in the manner of {}",
    "a detailed picture in the manner of {}",
    "a plain picture in the manner of {}",
    "a bright picture in the manner of {}",
    "a dark picture in the manner of {}",
    "something drawn as {}",
    "{}, the whole picture",
    "the look of {}",
    "all in {}",
)

TEMPLATES = {"object": OBJECT, "style": STYLE, "none": ("{}",)}

"""Turns a scene into pixels."""

from PIL import Image

from .scene import Background, Scene
from .sprites import SpriteLibrary


def render_background(background: Background, image_size: int) -> Image.Image:
    """RGB image of `image_size` x `image_size` without any thing on it."""
    image = Image.new("RGB", (image_size, image_size), background.upper)
    if background.horizon is not None:
        image.paste(background.lower, (0, background.horizon, image_size, image_size))
    return image


def render_scene(scene: Scene, library: SpriteLibrary) -> Image.Image:
    """RGB image of the scene; every object fills exactly its box."""
    image = render_background(scene.background, scene.image_size)
    for item in scene.objects:
        x, y, width, height = item.box
        sprite = library.image_of_extent(item.sprite_name, (width, height), item.mirrored)
        image.paste(sprite, (x, y), sprite)
    return image

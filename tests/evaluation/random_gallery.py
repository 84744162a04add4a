"""A gallery of random images and captions that looks like a `RetrievalDataset`, of any size."""

import torch
from torch.utils.data import Dataset


WORDS = ["red", "dog", "on", "grass", "cat"]


class RandomGallery(Dataset):
    """
    Each image is made when it is asked for; one has one, two, three, ... captions up to `most_captions`, or exactly
    `captions`.
    """

    def __init__(self, num_images: int, most_captions: int = 3, captions: int | None = None):
        self.num_images = num_images
        self.texts, self.captions_of_image, self.image_of_caption = [], [], []
        for image in range(num_images):
            count = 1 + image % most_captions if captions is None else captions
            self.captions_of_image.append(list(range(len(self.texts), len(self.texts) + count)))
            for number in range(count):
                self.image_of_caption.append(image)
                self.texts.append(" ".join(WORDS[(image + 2 * step) % 5] for step in range(1 + (number + image) % 9)))

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixels, "concepts": ["dog", "grass"][: index % 3]}

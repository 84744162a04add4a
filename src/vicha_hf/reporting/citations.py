"""The papers that a model card cites."""

CITATIONS = {
    "vicha": """@inproceedings{shukor2022vicha,
  title     = {Efficient Vision-Language Pretraining with Visual Concepts and Hierarchical Alignment},
  author    = {Shukor, Mustafa and Couairon, Guillaume and Cord, Matthieu},
  booktitle = {British Machine Vision Conference (BMVC)},
  year      = {2022},
  note      = {arXiv:2208.13628}
}""",
    "albef": """@inproceedings{li2021albef,
  title     = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author    = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and Xiong, Caiming and Hoi, Steven C. H.},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2021},
  note      = {arXiv:2107.07651}
}""",
    "simla": """@inproceedings{khan2022simla,
  title     = {Single-Stream Multi-Level Alignment for Vision-Language Pretraining},
  author    = {Khan, Zaid and Kumar BG, Vijay and Yu, Xiang and Schulter, Samuel and Chandraker, Manmohan and Fu, Yun},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022},
  note      = {arXiv:2203.14395}
}""",
}

# Where the papers stand, with the figures that are theirs.
PAPERS = {
    "vicha": "https://arxiv.org/abs/2208.13628",
    "albef": "https://arxiv.org/abs/2107.07651",
    "simla": "https://arxiv.org/abs/2203.14395",
}

"""Networks for images: timm's ResNet and ViT, the U-Net of segmentation-models-pytorch."""

import torch
from modules.subject import STEPS, Subject, Wrapped, numbers, shuffled
from torch.nn import functional as F
from torch.utils.data import TensorDataset

CLASSES = 5


def _images(n, side):
    return torch.randn(n, 3, side, side, generator=numbers())


def _classifier(name, side, **settings):
    import timm

    def make():
        net = timm.create_model(name, pretrained=False, num_classes=CLASSES, **settings)
        return Wrapped(net, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))

    def data():
        labels = torch.randint(CLASSES, (4 * STEPS,), generator=numbers())
        return shuffled(TensorDataset(_images(4 * STEPS, side), labels))

    return Subject(make, data, lambda model: model.net(_images(3, side)))


def timm_resnet():
    return _classifier("test_resnet", 32)


def timm_vit():
    return _classifier("test_vit", 32, img_size=32, drop_rate=0.1)


def unet():
    import segmentation_models_pytorch as smp

    def make():
        net = smp.Unet("tu-test_resnet", encoder_weights=None, decoder_channels=(64, 32, 16, 16, 8), classes=1)
        return Wrapped(net, lambda net, batch: F.binary_cross_entropy_with_logits(net(batch[0]), batch[1]))

    def data():
        images = _images(2 * STEPS, 32)
        return shuffled(TensorDataset(images, (images.mean(1, keepdim=True) > 0).float()))

    return Subject(make, data, lambda model: model.net(_images(2, 32)))

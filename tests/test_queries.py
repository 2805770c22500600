"""Losses and logits of models that answer by queries, against transformers' own and by loops."""

import pytest
import tiny_transformers as tiny
import torch
import torch.nn.functional as F

from ovseg.segmenters.queries import on_pixels, on_points, query_loss, semantic_logits

BUILT = {"maskformer": (tiny.maskformer, on_pixels), "mask2former": (tiny.mask2former, on_points)}


@pytest.fixture(scope="module", params=list(BUILT))
def family(request):
    """Return a model with the loss of its masks."""
    build, mask_loss = BUILT[request.param]
    torch.manual_seed(0)
    model, _ = build()
    return model.eval(), mask_loss


def random_layer(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the logits of 8 queries, the first 6 for a class each, at the labels' size."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.randn(len(labels), 8, *labels.shape[1:], generator=generator)
    masks += 6 * (labels[:, None] == torch.arange(8)[:, None, None]) - 3
    classes = torch.randn(len(labels), 8, 7, generator=generator) + 6 * torch.eye(8, 7)
    return {
        "class_queries_logits": classes.requires_grad_(),
        "masks_queries_logits": masks.requires_grad_(),
    }


def blocks(*shape: int) -> torch.Tensor:
    labels = torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(4))
    return labels.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_the_loss_is_transformers_own_where_nothing_is_ignored(family):
    model, mask_loss = family
    images, labels = torch.randn(2, 3, 48, 64), blocks(2, 6, 8)
    ids = [label.unique() for label in labels]
    masks = [(label == i[:, None, None]).float() for label, i in zip(labels, ids, strict=True)]
    torch.manual_seed(5)
    theirs = model(images, mask_labels=masks, class_labels=ids, output_auxiliary_logits=True)
    names = ("class_queries_logits", "masks_queries_logits")
    layers = [{n: theirs[n] for n in names}, *theirs.auxiliary_logits]
    torch.manual_seed(5)  # Mask2Former draws points
    ours = query_loss(layers, labels, model.criterion, mask_loss)
    torch.testing.assert_close(ours, theirs.loss)


def test_ignored_pixels_do_not_count(family):
    """MaskFormer's loss is that of the other half alone; no mask learns there in either."""
    model, mask_loss = family
    labels = blocks(2, 2, 4)
    half = labels.clone()
    half[:, :, 16:] = 255
    layer = random_layer(labels)
    loss = query_loss([layer], half, model.criterion, mask_loss)
    loss.backward()
    gradient = layer["masks_queries_logits"].grad
    assert (gradient[..., 17:] == 0).all() and (gradient[..., :15] != 0).any()
    if mask_loss is on_pixels:
        cut = {key: value.detach() for key, value in layer.items()}
        cut["masks_queries_logits"] = cut["masks_queries_logits"][..., :16]
        alone = query_loss([cut], half[:, :, :16], model.criterion, mask_loss)
        torch.testing.assert_close(loss.detach(), alone)


def test_an_image_without_a_label_carries_no_loss(family):
    model, mask_loss = family
    labels = blocks(2, 2, 4)
    labels[1] = 255
    layer = random_layer(labels)
    torch.manual_seed(6)
    loss = query_loss([layer], labels, model.criterion, mask_loss)
    first = {key: value[:1] for key, value in layer.items()}
    torch.manual_seed(6)
    torch.testing.assert_close(loss, query_loss([first], labels[:1], model.criterion, mask_loss))
    layer = random_layer(labels)
    loss = query_loss([layer], torch.full_like(labels, 255), model.criterion, mask_loss)
    loss.backward()
    assert loss.item() == 0
    assert all((value.grad == 0).all() for value in layer.values())


def test_logits_by_loops():
    torch.manual_seed(7)
    classes, masks = torch.randn(1, 3, 5), torch.randn(1, 3, 4, 4)
    found = semantic_logits(classes, masks, (8, 8))
    assert found.shape == (1, 4, 8, 8)
    large = F.interpolate(masks, (8, 8), mode="bilinear")
    for y in range(8):
        for x in range(8):
            sums = [
                sum(
                    (classes[0, q].softmax(0)[n] * large[0, q, y, x].sigmoid()).item()
                    for q in range(3)
                )
                for n in range(4)
            ]
            torch.testing.assert_close(found[0, :, y, x].exp(), torch.tensor(sums))
            shares = found[0, :, y, x].softmax(0)
            torch.testing.assert_close(shares, torch.tensor(sums) / sum(sums))
    nowhere = semantic_logits(classes, torch.full_like(masks, -1e4), (8, 8))
    assert nowhere.isfinite().all()

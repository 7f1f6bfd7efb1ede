"""docs/weights.md: the table of published weights for people."""

from collections.abc import Sequence
from pathlib import Path

from resnext_jax.interop.pretrained import Row, published

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "resnext_jax" / "interop" / "published.csv"
PAGE = ROOT / "docs" / "weights.md"

_HEAD = """# Published weights

```python
from flax import nnx
import resnext_jax

model = resnext_jax.create_model("timm/{example}", pretrained=True, rngs=nnx.Rngs(0))
model.eval()
```

The names work in `eval.py --weights=`, `--config.init_from=`, `predict`, `export` and
`python -m resnext_jax.interop.torch inspect` too; [from_pytorch.md](from_pytorch.md) has examples.
They need `pip install 'resnext-jax[hub]'`. Weights are downloaded from timm's repositories on the
Hugging Face Hub on first use and kept in its cache, which is then used without asking the server.
Files in the cache are checked against their SHA-256. torchvision's weights have the tags `tv_in1k`
and `tv2_in1k`.

The table has the {count} weights in timm {timm} whose networks are built here. Top-1 accuracy was
measured by timm's authors, at the input that `predict` and `eval.py` use: side of the crop in
pixels, `crop_pct` (its share of the short side that images are resized to) and interpolation.
**Scored here: no**, for every row: we had no access to the weights or to ImageNet. Licences are as
timm states them; where it states none, see the source. `cc-by-nc-4.0` (the SSL, SWSL and WSL
weights) forbids commercial use.

`python -m tests.interop.make_published` writes the table (`resnext_jax/interop/published.csv`) and
this page from timm's definitions and results.

| name | top-1 (%) | input | licence | parameters | source | scored here |
| --- | ---: | --- | --- | ---: | --- | --- |
"""

# timm's version that the table is of.
TIMM = "1.0.31"


def page(rows: Sequence[Row] | None = None) -> str:
    """Return the page."""
    rows = published() if rows is None else rows
    lines = [
        f"| `{row['name']}` | {row['top1'] or '-'} | {row['image_size']}, {row['crop_pct']}, "
        f"{row['interpolation']} | {row['licence'] or '-'} | {int(row['parameters']):,} | "
        f"{_link(row['source'])} | no |"
        for row in rows
    ]
    head = _HEAD.format(example="resnext50_32x4d.a1_in1k", count=len(rows), timm=TIMM)
    return head + "\n".join(lines) + "\n"


def _link(source: str) -> str:
    return f"[{source.split('/')[2].removeprefix('www.')}]({source})" if source else "-"

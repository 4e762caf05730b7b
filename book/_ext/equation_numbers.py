r"""Equations of the book carry the thesis's own numbers.

Sphinx counts equations afresh on every page. Here ``\tag{29}`` inside a display equation decides:
the tag is taken out of the TeX, the number is printed at the margin by Sphinx with a link to the
equation, and ``eq-29`` becomes its name, for ``[Eq. 29](#eq-29)`` or ``{eq}`eq-29``` on any page.
The same source reads well in JupyterLab, which knows ``\tag`` but not Sphinx's labels.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

_TAG = re.compile(r"\s*\\tag\{([0-9A-Za-z.]+)\}")
_log = logging.getLogger(__name__)


def number_equations(app: Sphinx, doctree: nodes.document) -> None:
    r"""Give every display equation with a ``\tag`` that number, and the name ``eq-<number>``."""
    domain = app.env.get_domain("math")
    for node in doctree.findall(nodes.math_block):
        found = _TAG.search(node.astext())
        if not found:
            continue
        number, label = found[1], f"eq-{found[1]}"
        if label in domain.equations:
            where = domain.equations[label][0]
            _log.warning(f"equation {number} is defined twice, first in {where}", location=node)
        text = _TAG.sub("", node.astext(), count=1)
        node.children = [nodes.Text(text)]
        node.rawsource = text
        node["label"], node["number"], node["docname"] = label, number, app.env.docname
        node["ids"] = [nodes.make_id(f"equation-{label}")]
        domain.equations[label] = (app.env.docname, number)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", number_equations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

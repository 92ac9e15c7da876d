"""MkDocs hook: links from docs/ to files elsewhere in the repository point to the repository.

The pages are read on the site and in the repository. There, `../experiments/constancy/README.md`
works as it is; the site holds docs/ only, so such a link becomes one to `repo_url`. A link to
a file that does not exist is a warning, and `mkdocs build --strict` fails.
"""

import logging
import posixpath
import re
from pathlib import Path

LOG = logging.getLogger("mkdocs.hooks")
LINK = re.compile(r"\]\((\.\./[^)#\s]+)")
"""A relative link that leaves its page's folder."""


def on_page_markdown(markdown, *, page, config, files):
    """Return the page with links that leave docs/ rewritten."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir).relative_to(root).as_posix()
    folder = posixpath.join(docs, posixpath.dirname(page.file.src_uri))

    def rewritten(match):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if path.startswith(f"{docs}/"):
            return match[0]
        if not (root / path).exists():
            LOG.warning("%s links to %s, which does not exist.", page.file.src_uri, path)
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{path}"

    return LINK.sub(rewritten, markdown)

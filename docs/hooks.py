"""Hook of mkdocs: links to files of the repository outside docs/ become the file's path.

The pages are also read in the repository, where such links work. The site has no copy of those files.
"""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of the page. A link to a file outside docs/ becomes the path of the file."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def path_of(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            return match[0]
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return _LINK.sub(path_of, markdown)

"""Pages that show runs in a browser: index.html of a folder, and the server of `noisetilt view`."""

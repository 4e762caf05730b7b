"""Make tests/reference/*.ipynb from the smoke profile's executed chapters.

Only what nbval compares stays of the outputs: times, addresses and pictures change every time.
"""

from cellaug.book import CHAPTERS, build_folder, project_root

import nbformat


def main() -> None:
    target = project_root() / "tests" / "reference"
    target.mkdir(exist_ok=True)
    for chapter in CHAPTERS:
        source = build_folder("smoke") / "notebooks" / f"{chapter}.ipynb"
        notebook = nbformat.read(source, as_version=4)
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{chapter[:2]}-{number:03d}"
            cell.metadata.pop("execution", None)
            if "outputs" in cell and "nbval-check-output" not in cell.metadata.get("tags", ()):
                cell.outputs = []
        nbformat.write(notebook, target / f"{chapter}.ipynb")


if __name__ == "__main__":
    main()

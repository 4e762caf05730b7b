"""Make tests/reference/*.ipynb from the smoke profile's executed chapters, pictures left out."""

from cellaug.book import CHAPTERS, build_folder, project_root

import nbformat

PICTURES = {"image/png", "image/svg+xml", "text/html"}


def main() -> None:
    target = project_root() / "tests" / "reference"
    target.mkdir(exist_ok=True)
    for chapter in CHAPTERS:
        source = build_folder("smoke") / "notebooks" / f"{chapter}.ipynb"
        notebook = nbformat.read(source, as_version=4)
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{chapter[:2]}-{number:03d}"
            for output in cell.get("outputs", ()):
                for kind in PICTURES & set(output.get("data", ())):
                    del output["data"][kind]
        nbformat.write(notebook, target / f"{chapter}.ipynb")


if __name__ == "__main__":
    main()

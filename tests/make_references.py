"""Make tests/reference/*.ipynb from the smoke profile's executed notebooks.

Only what nbval compares stays of the outputs: times, addresses and pictures change every time.
"""

from cellaug.book.chapter import build_folder, pages, project_root

import nbformat


def main() -> None:
    for name in pages():
        source = build_folder("smoke") / "notebooks" / f"{name}.ipynb"
        target = project_root() / "tests" / "reference" / f"{name}.ipynb"
        target.parent.mkdir(exist_ok=True)
        notebook = nbformat.read(source, as_version=4)
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{name.split('/')[-1][:2]}-{number:03d}"
            cell.metadata.pop("execution", None)
            if "outputs" in cell and "nbval-check-output" not in cell.metadata.get("tags", ()):
                cell.outputs = []
        nbformat.write(notebook, target)


if __name__ == "__main__":
    main()

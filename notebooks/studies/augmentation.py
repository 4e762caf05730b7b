# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Study: does augmentation help?
#
# This study trains generators and classifiers as a plan says, and records the results for the page
# *Does it help?*. `cellaug study augmentation` runs it. Every run is a task of Dask; a study that was
# stopped goes on where it was.

# %% tags=["parameters"]
profile = "smoke"
out = ""  # by default build/study/augmentation-PROFILE
scheduler = ""  # the address of a Dask cluster; by default one is started here
workers = 0  # processes of that cluster; by default as many as the machine bears
hours = 0.0  # after which no further run is begun; 0 for no end
external = ""  # another laboratory's set, on which every run is tested too
class_map = ""  # a file that names the study's classes for those of that set

# %%
from pathlib import Path

from cellaug.book.chapter import notebook_file, project_root, result_file
from cellaug.data import open_dataset
from cellaug.study.cluster import carry_out
from cellaug.study.external import other_laboratory
from cellaug.study.plan import ordered, read_plan
from cellaug.study.results import record, recorded, taxonomies

# %% [markdown]
# The plan says which runs there are and which arms are compared, before the first run.

# %%
plan = read_plan(notebook_file("studies/augmentation").parent / "plans" / f"{profile}.yaml")
folder = Path(out) if out else project_root() / "build/study" / f"augmentation-{profile}"
runs = plan.runs()
print(f"{len(runs)} classifiers, {len(ordered(runs)) - len(runs)} runs for their images")

# %%
elsewhere = other_laboratory(external, class_map, plan) if external else None

# %%
if __name__ == "__main__":
    place = folder / "tables" if out else result_file("augmentation") / profile
    known = {name for table in recorded(place).values() for name in table["run"]}
    todo = [run for run in runs if run.name not in known]  # some may be from another machine
    taxonomies(plan, open_dataset(plan.data, **plan.options).class_names)  # or say what is wrong
    again = [run for run in ordered(todo) if run.name in known]
    if lost := [run for run in again if not (folder / run.name).exists()]:
        print(f"{len(lost)} recorded generators and selections are not in {folder}: done again")
    left = carry_out(todo, folder, scheduler, workers or None, hours or None)
    record(plan, folder, place, elsewhere)
    if left:
        print(f"{len(left)} runs are left: the same command goes on with them")

# %%
if __name__ == "__main__":
    print(place)

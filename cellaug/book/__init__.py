"""The book: what a chapter needs, running the chapters, rendering them as HTML."""

from cellaug.book.chapter import (
    CHAPTERS,
    Chapter,
    build_folder,
    interactive,
    recorded_benchmark,
    recorded_results,
    result_file,
    thesis,
)
from cellaug.book.source import show

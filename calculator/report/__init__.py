"""What people and programs read: documents (JSON), text, and the sizing report."""

from __future__ import annotations

from calculator.report.documents import estimate_document

__all__ = ["estimate_document"]

"""Reports of runs and evaluations: one HTML file each, without scripts or the network, and charts as PNG files."""

from alignkit.report.run_report import lacking, report_at_end, write_report

__all__ = ["lacking", "report_at_end", "write_report"]

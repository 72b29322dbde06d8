"""More pairs from accepted ones: degrees and people in between."""

"""More pairs from accepted ones: degrees, people in between, hair of other colours."""

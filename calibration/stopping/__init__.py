"""From recorded traces to a certificate: candidate rules, exact tests of their risk, and their sample size."""

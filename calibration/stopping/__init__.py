"""From recorded traces to a certificate: candidate rules, exact tests of their risk, and how many problems that takes."""

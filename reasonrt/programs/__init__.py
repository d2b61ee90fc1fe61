"""Program search: the parts. What a program sees, where it runs, what it may ask, and which answer is believed."""

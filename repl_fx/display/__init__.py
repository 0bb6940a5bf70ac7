"""What is shown, wherever it is shown: tables, numbers as people read them, and HTML for notebooks; without torch."""

"""HTML pages: a base template with light and dark colours, and inline charts."""

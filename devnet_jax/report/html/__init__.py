"""What pages of results share: a base template with light and dark colours, and inline charts."""

"""What the study tells whoever runs it, in one line and without a traceback."""


class StudyError(Exception):
    """Something that the user can fix; the message says what, where, and how."""

"""A judge of answers: another model that grades by a task's protocol."""

"""Specialists: many teachers for one student, and a small local expert beside a global one."""

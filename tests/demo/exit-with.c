/* $(exit-with N) for GNU make ("Loading Dynamic Objects" in its manual): ends make with status N, so that `make run`
 * ends with its container's status. A failed recipe ends make with 2, whatever its own status was. */
#include <gnumake.h>
#include <stdlib.h>

int plugin_is_GPL_compatible;

static char *exit_with(const char *name, unsigned int count, char **arguments)
{
	(void)name;
	(void)count;
	exit(atoi(arguments[0]));
}

int exit_with_gmk_setup(void);

int exit_with_gmk_setup(void)
{
	gmk_add_function("exit-with", exit_with, 1, 1, GMK_FUNC_DEFAULT);
	return 1;
}

/* The whole application of this example. */
#include <stdio.h>

int main(void)
{
	return puts("Hello from the enclave side!") < 0;
}
